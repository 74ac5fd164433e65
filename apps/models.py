"""The models of a server: which there are, why each serves or does not, and the way back.

python -m apps.models --studies STUDIES list
python -m apps.models --studies STUDIES rollback --reason "parotids look odd"
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.config import default_model_dir, default_starter_dir
from lib.errors import ConfigError, OrganNetError
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry
from lib.models.served_model import ServedModel
from lib.recipes.schema import OPENKBP
from lib.recipes.yaml_files import find_recipe
from lib.retrain import model_views
from lib.storage.database import FILE, FOLDER, Database, state_folder


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.models",
        description=__doc__.splitlines()[0],
        epilog="Works while the server runs, which serves what is promoted here from its next request on, "
        "and without a server.",
    )
    add = flags.add_argument
    add("--studies", help="the folder, or the DICOMweb url, that the server is started with")
    add("--model-dir", type=Path, default=default_model_dir(), help="where models are kept")
    add("--starter-dir", type=Path, default=default_starter_dir(), help="where the starter lies")
    add("--recipe", default=OPENKBP.name, help="the server's: a starter of other organs is none")
    add("--by", default=os.environ.get("USER") or "command line", help="who promotes")
    add("--json", action="store_true", help="print JSON")
    commands = flags.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every model, newest first")
    show = commands.add_parser("show", help="all that is known of one")
    show.add_argument("version")
    compare = commands.add_parser("compare", help="two side by side")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    promote = commands.add_parser("promote", help="let one serve")
    promote.add_argument("version")
    promote.add_argument("--reason", required=True, help="why, for those who come after")
    back = commands.add_parser("rollback", help="let the one serve that served before")
    back.add_argument("--reason", default="", help="why, for those who come after")
    prune = commands.add_parser("prune", help="remove weights that nobody needs; the history stays")
    prune.add_argument("--keep", type=int, required=True, help="promoted models to keep")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if it did what was asked, else 1."""
    options = parser().parse_args(argv)
    try:
        promoter = _promoter(options)
        promoter.notice()
        found = _DO[options.command](promoter, options)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if options.json else _SAY[options.command](found))
    return 0


def _promoter(options: argparse.Namespace) -> Promoter:
    organ_set = find_recipe(options.recipe).organ_set
    registry = Registry(options.model_dir, starter=options.starter_dir, organ_set=organ_set)
    return Promoter(registry, ModelHistory(Database(_database_file(options))))


def _database_file(options: argparse.Namespace) -> Path:
    if options.studies is None:
        path: Path = options.model_dir / FOLDER / FILE
        if not path.is_file():
            raise ConfigError(
                "--studies: which? Give the folder, or the DICOMweb url, that the server is started with: "
                "the models' history lies there"
            )
        return path
    is_url = options.studies.startswith(("http://", "https://"))
    if not is_url and not Path(options.studies).is_dir():
        raise ConfigError(f"--studies: {options.studies} is no folder")
    return state_folder(options.studies, options.model_dir) / FILE


def _list(promoter: Promoter, _options: argparse.Namespace) -> dict[str, Any]:
    return model_views.overview(promoter.models, ServedModel(promoter.registry))


def _show(promoter: Promoter, options: argparse.Namespace) -> dict[str, Any]:
    served = ServedModel(promoter.registry)
    return model_views.everything(promoter.models, served, options.version)


def _compare(promoter: Promoter, options: argparse.Namespace) -> dict[str, Any]:
    return model_views.compare(promoter.models, promoter.registry, options.a, options.b)


def _promote(promoter: Promoter, options: argparse.Namespace) -> dict[str, Any]:
    promoter.promote(options.version, reason=options.reason, by=options.by)
    return {"served": options.version}


def _roll_back(promoter: Promoter, options: argparse.Namespace) -> dict[str, Any]:
    return {"served": promoter.rollback(by=options.by, reason=options.reason)}


def _prune(promoter: Promoter, options: argparse.Namespace) -> dict[str, Any]:
    if options.keep < 0:
        raise ConfigError(f"--keep: {options.keep} is below 0")
    return {"pruned": promoter.prune(keep=options.keep)}


def _said_list(found: Mapping[str, Any]) -> str:
    rows = [("", "version", "created", "decision", "DSC", "labels", "reason")]
    for model in found["models"]:
        notes = [model["decision"]]
        notes += ["due"] if model["is_due"] else []
        notes += ["pruned"] if model["pruned_at"] else []
        rows.append(
            (
                "*" if model["is_served"] else "",
                model["version"],
                str(model["created_at"])[:16].replace("T", " "),
                ", ".join(notes),
                _number(model["mean_dice"]),
                str(model["labels_seen"]),
                model["reason"],
            )
        )
    said = _table(rows) + f"\n* serves: {found['served'] or 'none'}"
    return said + (f"\ntrouble: {found['trouble']}" if found["trouble"] else "")


def _said_all(found: Mapping[str, Any]) -> str:
    named = {key: value for key, value in found.items() if key not in ("card", "report", "labels")}
    named["labels"] = ", ".join(label["image_id"] for label in found["labels"])
    rows = [(key, value) for key, value in named.items() if not isinstance(value, dict | list)]
    said = _table([(key, "" if value is None else str(value)) for key, value in rows])
    organs = [(organ, _number(value)) for organ, value in found["metrics"].items()]
    served = [(p["since"], p["by"], p["reason"]) for p in found["promotions"]]
    parts = [_table([("organ", "DSC"), *organs])] if organs else []
    parts += [_table([("served since", "by", "why"), *served])] if served else []
    return "\n\n".join([said, *parts])


def _said_pair(found: Mapping[str, Any]) -> str:
    rows = [("", found["a"], found["b"], "difference")]
    for organ, pair in {**found["organs"], "mean": found["mean_dice"]}.items():
        rows.append((organ, *(_number(pair[key]) for key in ("a", "b", "difference"))))
    labels = found["labels"]
    said = [_table(rows), f"labels that both learned from: {labels['both']}"]
    for side in ("a", "b"):
        names = ", ".join(label["image_id"] for label in labels[f"only_{side}"]) or "none"
        said.append(f"only {found[side]}: {names}")
    differing = [(field, str(p["a"]), str(p["b"])) for field, p in found["recipe"].items()]
    heading = ("recipe", found["a"], found["b"])
    said.append(_table([heading, *differing]) if differing else "recipe: the same")
    return "\n".join(said)


def _said_served(found: Mapping[str, Any]) -> str:
    return f"{found['served']} serves from the next request on"


def _said_pruned(found: Mapping[str, Any]) -> str:
    return "\n".join(f"pruned {version}" for version in found["pruned"]) or "nothing to prune"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


_DO: Mapping[str, Callable[[Promoter, argparse.Namespace], dict[str, Any]]] = {
    "list": _list,
    "show": _show,
    "compare": _compare,
    "promote": _promote,
    "rollback": _roll_back,
    "prune": _prune,
}
_SAY: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "list": _said_list,
    "show": _said_all,
    "compare": _said_pair,
    "promote": _said_served,
    "rollback": _said_served,
    "prune": _said_pruned,
}


if __name__ == "__main__":
    sys.exit(main())
