"""How much of the predictions people change before they submit, and whether that gets less.

python -m apps.edit_cost --studies STUDIES --output DIR
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.activelearning.edit_cost_chart import edit_chart, write_tables
from lib.activelearning.edit_cost_curve import summary
from lib.activelearning.edit_cost_records import EditCostRecords
from lib.config import default_model_dir
from lib.errors import ConfigError, OrganNetError
from lib.storage.atomic_files import replacing
from lib.storage.database import FILE, Database, state_folder


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.edit_cost",
        description=__doc__.splitlines()[0],
        epilog="The server measures each submitted label in the background; this reads what it found. A "
        "submission does not count if the model had learned from the case before, or if somebody "
        "submitted the case again while the same model served.",
    )
    add = flags.add_argument
    add(
        "--studies",
        required=True,
        help="the folder, or DICOMweb url, that the server is started with",
    )
    add("--model-dir", type=Path, default=default_model_dir(), help="where models are kept")
    add("--output", type=Path, help="gets edit-cost.png, edit-cost.csv and edit-cost-organs.csv")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if there is a database to read, else 1."""
    options = parser().parse_args(argv)
    try:
        found = _summary(options)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_said(found))
    if options.output is not None:
        picture = options.output / "edit-cost.png"
        with replacing(picture) as beside:
            beside.write_bytes(edit_chart(found))
        print(f"see {', '.join(str(p) for p in (picture, *write_tables(options.output, found)))}")
    return 0


def _summary(options: argparse.Namespace) -> dict[str, Any]:
    path = state_folder(options.studies, options.model_dir) / FILE
    if not path.is_file():
        raise ConfigError(
            f"--studies: {path} is not there; give the folder, or DICOMweb url, that the server is started with"
        )
    database = Database(path)
    try:
        return summary(EditCostRecords(database).curve())
    finally:
        database.close()


def _said(found: Mapping[str, Any]) -> str:
    """Return the table of submissions, that of organs, and the verdict."""
    submissions = [
        ("submitted", "image", "author", "model", "organs", "DSC", "added mm", "voxels", "")
    ]
    submissions += [
        (
            one["time"][:16].replace("T", " "),
            one["image"],
            one["author"] or "-",
            one["model_version"],
            str(one["organs"]),
            _number(one["mean_dsc"], 3),
            _number(one["added_path_mm"], 0),
            _number(one["changed_voxels"], 0),
            _note(one),
        )
        for one in found["submissions"]
    ]
    organs = [("organ", "cases", "unchanged", "missed", "DSC", "added mm", "changed ml")]
    organs += [
        (
            name,
            str(numbers["n"]),
            str(numbers["unchanged"]),
            str(numbers["missed"]),
            _number(numbers["dsc"], 3),
            _number(numbers["added_path_mm"], 0),
            _number(numbers["changed_ml"], 2),
        )
        for name, numbers in found["organs"].items()
    ]
    parts = [_table(rows) for rows in (submissions, organs) if len(rows) > 1]
    share = found["unchanged_share"]
    if share is not None:
        parts.append(f"{share:.0%} of the last contours were submitted as predicted")
    return "\n\n".join([*parts, found["verdict"]])


def _note(one: Mapping[str, Any]) -> str:
    if one["trouble"]:
        return f"not measured: {one['trouble']}"
    notes = [] if one["counts"] else ["does not count"]
    notes += ["learned from before"] if one["was_trained_on"] else []
    notes += [f"left out: {', '.join(one['left_out'])}"] if one["left_out"] else []
    return "; ".join(notes)


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
