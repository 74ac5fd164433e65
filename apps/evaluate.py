"""Compare predicted contours with reference contours: a table, a summary and a report.

python -m apps.evaluate --reference DIR --prediction DIR --output DIR
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from lib.errors import ConfigError, OrganNetError
from lib.evaluation.case_loading import find_cases, read_labels_file
from lib.evaluation.report import charts, draw_worst, write_report
from lib.evaluation.table import WORKERS, Evaluation, evaluate, overall, summary, write_csv
from lib.imaging.scans import find_scans, scan_name
from lib.organs.naming import tg263_name
from lib.storage.atomic_files import replacing, write_json


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.evaluate",
        description=__doc__.splitlines()[0],
        epilog="A case is a label volume CASE.nii.gz (.nii, .nrrd, .mha) or a folder CASE of one mask per "
        "organ, of one name on both sides. An organ that the reference lacks is unknown and left out; one "
        "that the prediction lacks is missed: DSC and surface DSC 0, distances empty.",
    )
    add = flags.add_argument
    add(
        "--reference",
        type=Path,
        required=True,
        help="folder of cases: the contours to compare with",
    )
    add("--prediction", type=Path, required=True, help="folder of cases: the contours to judge")
    add(
        "--labels",
        type=Path,
        help="YAML or JSON of organ: value for label volumes, or pddca or openkbp",
    )
    add("--images", type=Path, help="folder of CTs, drawn below the worst cases")
    add("--organs", nargs="+", help="look at these only; default: all that the references contain")
    add(
        "--output",
        type=Path,
        required=True,
        help="gets metrics.csv, summary.json, report.html, figures/",
    )
    add("--workers", type=int, default=WORKERS, help="organs at work at once")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0 if every common case was compared, else 1."""
    options = parser().parse_args(argv)
    started = time.perf_counter()
    try:
        found = _evaluate(options)
        print(_said(found))
        seconds = time.perf_counter() - started
        print(f"{len(found.cases)} cases in {seconds:.0f} s; see {options.output / 'report.html'}")
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for reason in found.refused.values():
        print(f"refused: {reason}", file=sys.stderr)
    return 1 if found.refused else 0


def _evaluate(options: argparse.Namespace) -> Evaluation:
    values = None if options.labels is None else read_labels_file(options.labels)
    organs = None if options.organs is None else [_organ(name) for name in options.organs]
    references, predictions = find_cases(options.reference), find_cases(options.prediction)
    images = {}
    if options.images is not None:
        images = {scan_name(scan): scan for scan in find_scans(options.images)}
    total = len(references.keys() & predictions.keys())
    with tqdm(total=total, unit="case") as bar:
        found = evaluate(
            references,
            predictions,
            values=values,
            organs=organs,
            workers=options.workers,
            on_case=lambda _: bar.update(),
        )
    write_csv(options.output / "metrics.csv", found.rows)
    write_json(options.output / "summary.json", summary(found))
    pictures = charts(found) if found.rows else {}
    for name, picture in pictures.items():
        with replacing(options.output / "figures" / f"{name}.png") as beside:
            beside.write_bytes(picture)
    worst = draw_worst(found, references, predictions, images, values=values)
    now = datetime.now(timezone.utc)
    write_report(
        options.output / "report.html",
        found,
        pictures,
        worst,
        sides=(options.reference.resolve().name, options.prediction.resolve().name),
        made=f"OrganNet Label, apps.evaluate, {now:%d %B %Y}",
    )
    return found


def _organ(spelling: str) -> str:
    name = tg263_name(spelling)
    if name is None:
        raise ConfigError(
            f"--organs: {spelling!r} is no organ of ours; TG-263 names expected: Parotid_L"
        )
    return name


def _said(found: Evaluation) -> str:
    """Return what was found and what was left out, a line each."""
    dsc = overall(found)["dsc"]["mean_of_organ_means"]
    lines = [f"{len(found.rows)} contours of {len(found.organs)} organs: mean DSC {dsc:.3f}"]
    missed = [f"{row.organ} of {row.case}" for row in found.rows if row.is_missed]
    if missed:
        lines.append(f"missed by the prediction (DSC 0): {', '.join(missed)}")
    for case, organs in found.unknown.items():
        lines.append(f"left out, not contoured in the reference: {case}: {', '.join(organs)}")
    for side, names in found.unmatched.items():
        for name, cases in names.items():
            lines.append(f"left out, no organ of ours: {name} ({side}, {len(cases)} cases)")
    for title, left_out in (
        ("left out, not asked for", found.unasked),
        ("left out, cases without a prediction", found.only_reference),
        ("left out, cases without a reference", found.only_prediction),
    ):
        if left_out:
            lines.append(f"{title}: {', '.join(left_out)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
