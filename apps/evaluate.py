"""Compare predicted contours with reference contours: a table, a summary and a report.

python -m apps.evaluate --reference DIR --prediction DIR --output DIR
"""

import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Option

from apps.support.console import program
from lib.errors import ConfigError

if TYPE_CHECKING:
    from lib.evaluation.table import Evaluation


def evaluate(
    reference: Path = Option(..., help="Folder of the reference contours."),
    prediction: Path = Option(..., help="Folder of the contours to evaluate."),
    output: Path = Option(..., help="Gets metrics.csv, summary.json, report.html and figures/."),
    labels: Path | None = Option(
        None, help="Label values: YAML or JSON file of 'organ: value', or pddca or openkbp."
    ),
    images: Path | None = Option(
        None, help="Folder of the CTs, for the pictures of the worst cases."
    ),
    organs: list[str] | None = Option(
        None, help="Organs to evaluate; default: all organs of the references."
    ),
    workers: int = Option(2, help="Number of parallel workers."),
) -> int:
    """Compare predicted contours with reference contours: a table, a summary and a report.

    A case is a label volume CASE.nii.gz (.nii, .nrrd, .mha) or a folder CASE with one mask per organ; a case
    has the same name on both sides. An organ that the reference lacks is unknown and left out. An organ that
    the prediction lacks is missed: its DSC and surface DSC are 0 and its distances are empty. The exit code
    is 0 if every case that both sides have was compared, else 1.
    """
    from tqdm import tqdm

    from lib.evaluation import table
    from lib.evaluation.case_loading import find_cases, read_labels_file
    from lib.evaluation.charts import charts
    from lib.evaluation.report import draw_worst, write_report
    from lib.labels.scan_search import find_scans
    from lib.storage.atomic_files import replacing, write_json

    started = time.perf_counter()
    values = None if labels is None else read_labels_file(labels)
    names = None if organs is None else [_organ(spelling) for spelling in organs]
    references, predictions = find_cases(reference), find_cases(prediction)
    scans = {} if images is None else find_scans(images).by_name()
    with tqdm(total=len(references.keys() & predictions.keys()), unit="case") as bar:
        result = table.evaluate(
            references,
            predictions,
            values=values,
            organs=names,
            workers=workers,
            on_case=lambda _: bar.update(),
        )
    table.write_csv(output / "metrics.csv", result.rows)
    write_json(output / "summary.json", table.summary(result))
    pictures = charts(result) if result.rows else {}
    for name, picture in pictures.items():
        with replacing(output / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(picture)
    write_report(
        output / "report.html",
        result,
        pictures,
        draw_worst(result, references, predictions, scans, values=values),
        sides=(reference.resolve().name, prediction.resolve().name),
        made=f"OrganNet Label, apps.evaluate, {datetime.now(timezone.utc):%d %B %Y}",
    )
    print(_as_text(result, table.overall(result)["dsc"]["mean_of_organ_means"]))
    seconds = time.perf_counter() - started
    print(f"{len(result.cases)} cases in {seconds:.0f} s; see {output / 'report.html'}")
    for reason in result.refused.values():
        print(f"refused: {reason}", file=sys.stderr)
    return 1 if result.refused else 0


def _organ(spelling: str) -> str:
    from lib.organs.naming import tg263_name

    name = tg263_name(spelling)
    if name is None:
        raise ConfigError(
            f"--organs: {spelling!r} is not a known organ; give a TG-263 name such as Parotid_L"
        )
    return name


def _as_text(result: "Evaluation", dsc: float) -> str:
    """Return the mean DSC and the organs and cases that were left out, one line each."""
    lines = [f"{len(result.rows)} contours of {len(result.organs)} organs: mean DSC {dsc:.3f}"]
    missed = [f"{row.organ} of {row.case}" for row in result.rows if row.is_missed]
    if missed:
        lines.append(f"missed by the prediction (DSC 0): {', '.join(missed)}")
    for case, organs in result.unknown.items():
        lines.append(f"left out, not contoured in the reference: {case}: {', '.join(organs)}")
    for side, names in result.unmatched.items():
        for name, cases in names.items():
            lines.append(f"left out, unknown organ: {name} ({side}, {len(cases)} cases)")
    for title, left_out in (
        ("left out, not in --organs", result.not_requested),
        ("left out, cases without a prediction", result.only_reference),
        ("left out, cases without a reference", result.only_prediction),
    ):
        if left_out:
            lines.append(f"{title}: {', '.join(left_out)}")
    return "\n".join(lines)


main = program(evaluate, "evaluate")

if __name__ == "__main__":
    sys.exit(main())
