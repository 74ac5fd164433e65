"""Report how much of each prediction is changed before submission, and the trend over time.

python -m apps.edit_cost --studies STUDIES --output DIR
"""

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from typer import Option

from apps.support.console import number, program, text_table
from apps.support.options import MODEL_DIR, ModelDir, Studies
from lib.errors import ConfigError


def edit_cost(
    studies: Studies,
    model_dir: ModelDir = MODEL_DIR,
    output: Path | None = Option(
        None, help="Gets edit-cost.png, edit-cost.csv and edit-cost-organs.csv."
    ),
) -> int:
    """Report how much of each prediction is changed before submission, and the trend over time.

    The server measures each submitted label in the background; this program reads the stored results. A
    submission does not count if the model had been trained on the case before, or if the case was submitted
    again while the same model was active.
    """
    from lib.activelearning.edit_cost_chart import edit_chart, write_tables
    from lib.activelearning.edit_costs import EditCostRecords, summary
    from lib.storage.atomic_files import replacing
    from lib.storage.database import FILE, Database, state_folder

    path = state_folder(studies, model_dir) / FILE
    if not path.is_file():
        raise ConfigError(
            f"--studies: {path} does not exist; give the studies folder or DICOMweb URL with which the "
            "server is started"
        )
    with closing(Database(path)) as database:
        result = summary(EditCostRecords(database).curve())
    print(_as_text(result))
    if output is not None:
        picture = output / "edit-cost.png"
        with replacing(picture) as temporary:
            temporary.write_bytes(edit_chart(result))
        print(f"see {', '.join(str(p) for p in (picture, *write_tables(output, result)))}")
    return 0


def _as_text(result: Mapping[str, Any]) -> str:
    """Return the table of submissions, the table of organs and the conclusion."""
    submissions = [
        ("submitted", "image", "author", "model", "organs", "DSC", "added mm", "voxels", "")
    ]
    submissions += [
        (
            row["time"][:16].replace("T", " "),
            row["image"],
            row["author"] or "-",
            row["model_version"],
            row["organs"],
            number(row["mean_dsc"]),
            number(row["added_path_mm"], 0),
            number(row["changed_voxels"], 0),
            _note(row),
        )
        for row in result["submissions"]
    ]
    organs = [("organ", "cases", "unchanged", "missed", "DSC", "added mm", "changed ml")]
    organs += [
        (
            name,
            numbers["n"],
            numbers["unchanged"],
            numbers["missed"],
            number(numbers["dsc"]),
            number(numbers["added_path_mm"], 0),
            number(numbers["changed_ml"], 2),
        )
        for name, numbers in result["organs"].items()
    ]
    parts = [text_table(rows) for rows in (submissions, organs) if len(rows) > 1]
    share = result["unchanged_share"]
    if share is not None:
        parts.append(f"{share:.0%} of the last contours were submitted as predicted")
    return "\n\n".join([*parts, result["verdict"]])


def _note(row: Mapping[str, Any]) -> str:
    if row["trouble"]:
        return f"not measured: {row['trouble']}"
    notes = [] if row["counts"] else ["does not count"]
    notes += ["case used in training before"] if row["was_trained_on"] else []
    notes += [f"left out: {', '.join(row['left_out'])}"] if row["left_out"] else []
    return "; ".join(notes)


main = program(edit_cost, "edit_cost")

if __name__ == "__main__":
    sys.exit(main())
