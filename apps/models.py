"""List, compare, promote and roll back the models of a server.

python -m apps.models --studies STUDIES list
python -m apps.models --studies STUDIES rollback --reason "parotids look odd"
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from apps.support.console import Program, new_app, number, program, text_table
from apps.support.options import MODEL_DIR, STARTER_DIR, ModelDir
from lib.errors import ConfigError

if TYPE_CHECKING:
    from lib.models.promotion import Promoter
    from lib.models.registry import Registry

Result = Mapping[str, Any]
Version = Annotated[str, Argument(help="Version of a model.")]

app = new_app(
    epilog="Works with and without a running server. A running server uses a newly promoted model from its "
    "next request on."
)
main = program(app, "models")


@app.callback()
@dataclass(frozen=True, kw_only=True)
class _Options:
    """List, compare, promote and roll back the models of a server."""

    context: typer.Context
    studies: str | None = Option(
        None, help="Studies folder or DICOMweb URL with which the server is started."
    )
    model_dir: ModelDir = MODEL_DIR
    starter_dir: Path = Option(
        STARTER_DIR, help="Folder of the starter weights.", show_default="model/starter"
    )
    recipe: str = Option(
        "openkbp", help="Recipe of the server; starter weights for another organ set are ignored."
    )
    by: str = Option(
        os.environ.get("USER") or "command line",
        help="Name for the promotion history.",
        show_default="the user's name",
    )
    as_json: bool = Option(False, "--json", help="Print JSON.")

    def __post_init__(self) -> None:
        self.context.obj = self  # for the commands, which get their options from the context

    def promoter(self) -> "Promoter":
        """Return the models of the server, after changes in the model folder were recorded in the database."""
        from lib.models.model_history import ModelHistory
        from lib.models.promotion import Promoter
        from lib.storage.database import Database

        promoter = Promoter(self.registry(), ModelHistory(Database(self._database_file())))
        promoter.record_external_changes()
        return promoter

    def registry(self) -> "Registry":
        """Return the models in the model folder, and the starter."""
        from lib.models.registry import Registry
        from lib.recipes.yaml_files import find_recipe

        organ_set = find_recipe(self.recipe).organ_set
        return Registry(self.model_dir, starter=self.starter_dir, organ_set=organ_set)

    def _database_file(self) -> Path:
        from lib.storage.database import FILE, FOLDER, state_folder

        if self.studies is None:
            path: Path = self.model_dir / FOLDER / FILE
            if not path.is_file():
                raise ConfigError(
                    "--studies is missing: give the studies folder or DICOMweb URL with which the server is "
                    "started; it holds the promotion history"
                )
            return path
        is_url = self.studies.startswith(("http://", "https://"))
        if not is_url and not Path(self.studies).is_dir():
            raise ConfigError(f"--studies: {self.studies} is not a folder")
        return state_folder(self.studies, self.model_dir) / FILE

    def print(self, result: Result, text: str) -> int:
        """Print a result as JSON or as text; return exit code 0."""
        print(json.dumps(result, indent=2) if self.as_json else text)
        return 0


def _options(context: typer.Context) -> _Options:
    options: _Options = context.obj
    return options


@app.command("list", cls=Program)
def list_models(context: typer.Context) -> int:
    """List all models, newest first, and mark the active one."""
    from lib.models.served_model import ServedModel
    from lib.retrain import views

    promoter = _options(context).promoter()
    result = views.list_models(promoter.models, ServedModel(promoter.registry))
    rows = [("", "version", "created", "decision", "DSC", "labels", "reason")]
    for model in result["models"]:
        notes = [model["decision"]]
        notes += ["due"] if model["is_due"] else []
        notes += ["pruned"] if model["pruned_at"] else []
        rows.append(
            (
                "*" if model["is_served"] else "",
                model["version"],
                str(model["created_at"])[:16].replace("T", " "),
                ", ".join(notes),
                number(model["mean_dice"]),
                model["labels_seen"],
                model["reason"],
            )
        )
    text = text_table(rows) + f"\n* active model: {result['served'] or 'none'}"
    text += f"\nproblem: {result['trouble']}" if result["trouble"] else ""
    return _options(context).print(result, text)


@app.command(cls=Program)
def show(context: typer.Context, version: Version) -> int:
    """Show everything that is recorded about one model."""
    from lib.models.served_model import ServedModel
    from lib.retrain import views

    promoter = _options(context).promoter()
    result = views.describe_model(promoter.models, ServedModel(promoter.registry), version)
    values = {k: v for k, v in result.items() if k not in ("card", "report", "labels")}
    values["labels"] = ", ".join(label["image_id"] for label in result["labels"])
    rows = [
        (key, "" if value is None else value)
        for key, value in values.items()
        if not isinstance(value, dict | list)
    ]
    parts = [text_table(rows)]
    organs = [(organ, number(value)) for organ, value in result["metrics"].items()]
    parts += [text_table([("organ", "DSC"), *organs])] if organs else []
    periods = [(p["since"], p["by"], p["reason"]) for p in result["promotions"]]
    parts += [text_table([("active since", "by", "reason"), *periods])] if periods else []
    return _options(context).print(result, "\n\n".join(parts))


@app.command(cls=Program)
def compare(
    context: typer.Context,
    a: str = Argument(..., metavar="A", help="Version of the first model."),
    b: str = Argument(..., metavar="B", help="Version of the second model."),
) -> int:
    """Compare the metrics, labels and recipes of two models."""
    from lib.retrain import views

    promoter = _options(context).promoter()
    result = views.compare_models(promoter.models, promoter.registry, a, b)
    rows = [("", a, b, "difference")]
    for organ, pair in {**result["organs"], "mean": result["mean_dice"]}.items():
        rows.append((organ, *(number(pair[key]) for key in ("a", "b", "difference"))))
    labels = result["labels"]
    lines = [text_table(rows), f"labels that both models were trained on: {labels['both']}"]
    for side, version in (("a", a), ("b", b)):
        names = ", ".join(label["image_id"] for label in labels[f"only_{side}"]) or "none"
        lines.append(f"only {version}: {names}")
    fields = [(field, p["a"], p["b"]) for field, p in result["recipe"].items()]
    lines.append(text_table([("recipe", a, b), *fields]) if fields else "recipe: the same")
    return _options(context).print(result, "\n".join(lines))


@app.command(cls=Program)
def promote(
    context: typer.Context,
    version: Version,
    reason: str = Option(..., help="Reason, kept in the promotion history."),
) -> int:
    """Make a model the active one."""
    _options(context).promoter().promote(version, reason=reason, by=_options(context).by)
    return _options(context).print({"served": version}, _active(version))


@app.command(cls=Program)
def rollback(
    context: typer.Context,
    reason: str = Option("", help="Reason, kept in the promotion history."),
) -> int:
    """Make the previously active model active again."""
    version = _options(context).promoter().rollback(by=_options(context).by, reason=reason)
    return _options(context).print({"served": version}, _active(version))


def _active(version: str) -> str:
    return f"{version} is the active model from the next request on"


@app.command(cls=Program)
def export(
    context: typer.Context,
    version: Version,
    output: Path = Option(..., help="File to write; .onnx."),
    opset: int = Option(17, min=13, max=20, help="Version of ONNX's operators."),
) -> int:
    """Write the network of a model as ONNX, with organs, spacing and HU windows as metadata."""
    from lib.backends.onnx_files import export_onnx
    from lib.models.registry import load_model

    if output.suffix.lower() != ".onnx":
        raise ConfigError(f"--output: {output.name} does not end with .onnx")
    registry = _options(context).registry()
    export_onnx(load_model(registry.weights_path(version)), output, opset=opset)
    return _options(context).print({"version": version, "file": str(output)}, f"wrote {output}")


@app.command(cls=Program)
def prune(
    context: typer.Context,
    keep: int = Option(..., help="Number of promoted models whose weights are kept."),
) -> int:
    """Remove weights of models that are no longer needed; the history stays."""
    if keep < 0:
        raise ConfigError(f"--keep: {keep} is below 0")
    versions = _options(context).promoter().prune(keep=keep)
    text = "\n".join(f"pruned {version}" for version in versions) or "nothing to prune"
    return _options(context).print({"pruned": versions}, text)


if __name__ == "__main__":
    sys.exit(main())
