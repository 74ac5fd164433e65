"""The whole loop on cases that are contoured already: a server, labels one by one, and what comes live.

python -m apps.rehearse --data DIR --cases 30 --test 8 --from nothing --output DIR

Nothing of DIR is changed: scans are copied into a studies folder. The test cases are never given
to the server; every version that served is measured on them at the end.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.support.server_process import serving
from apps.support.simulated_clients import SimulatedAnnotator, SimulatedViewer, Timeline
from apps.support.timeline_chart import timeline_chart
from lib.config import best_device, default_starter_dir
from lib.errors import OrganNetError
from lib.imaging.scans import read_ct, write_ct
from lib.models.model_cards import trained_cases
from lib.models.registry import load_model
from lib.recipes.yaml_files import find_recipe
from lib.storage.atomic_files import write_json
from lib.training.cases import Case, find_labelled_cases
from lib.training.validate import validate


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.rehearse", description=__doc__.splitlines()[0]
    )
    flags.add_argument("--data", type=Path, required=True, help="labelled cases, as for apps.train")
    flags.add_argument("--output", type=Path, required=True, help="an empty folder, or a new one")
    flags.add_argument("--cases", type=int, default=30, help="that are submitted")
    flags.add_argument("--test", type=int, default=8, help="that the server never sees")
    flags.add_argument("--from", dest="start", choices=("starter", "nothing"), default="nothing")
    flags.add_argument("--recipe", default="openkbp")
    flags.add_argument("--every", type=float, default=10.0, help="seconds between two labels")
    flags.add_argument("--infer-every", type=float, default=1.0, help="seconds between two infers")
    flags.add_argument("--limit-minutes", type=float, default=240.0)
    flags.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
        help="settings of the server, as for MONAI Label",
    )  # fmt: skip
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code: 0 only if no request failed and some version went live."""
    options = parser().parse_args(argv)
    try:
        return _rehearse(options)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _rehearse(options: argparse.Namespace) -> int:
    pool, test = _chosen(options)
    studies, models = options.output / "studies", options.output / "models"
    for case in pool:
        target = studies / f"{case.image_id}.nii.gz"
        if not target.exists():
            write_ct(target, read_ct(case.image, image_id=case.image_id))
    starter = default_starter_dir() if options.start == "starter" else options.output / "none"
    conf = {"recipe": options.recipe, "model_dir": str(models), "starter_dir": str(starter),
            "quiet_s": "5", **dict(options.conf)}  # fmt: skip
    print(f"{len(pool)} cases to submit, {len(test)} to test on; from {options.start}")
    timeline = Timeline(print)
    labels = dict(find_recipe(options.recipe).labels)
    with serving(studies, conf, log=options.output / "server.log") as url:
        ids = [case.image_id for case in pool]
        reader = SimulatedViewer(url, ids, every_s=options.infer_every)
        annotator = SimulatedAnnotator(url, timeline)
        reader.start()
        for case in pool:
            annotator.submit(case, labels)
            annotator.look()
            time.sleep(options.every)
        status = annotator.wait_until_idle(60 * options.limit_minutes)
        reader.end()
    found = _measured(timeline, models, starter, test)
    infers = _infers(reader)
    report = {
        "events": timeline.events,
        "versions": found,
        "infers": infers,
        "status": status,
    }
    write_json(options.output / "rehearsal.json", report)
    chart = timeline_chart(timeline.events, [one for one in found if one["mean_dsc"] is not None])
    (options.output / "rehearsal.png").write_bytes(chart)
    _print(found, infers)
    return 0 if found and not infers["failed"] else 1


def _chosen(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """Return the cases to submit and those to test on, evenly over all; none that the starter has learned from.

    Raises:
        OrganNetError: If there are too few.
    """
    known = trained_cases(default_starter_dir()) if options.start == "starter" else set()
    every = [case for case in find_labelled_cases(options.data) if case.image_id not in known]
    wanted = options.cases + options.test
    if len(every) < wanted:
        raise OrganNetError(
            f"{options.data}: {len(every)} cases that may be used, {wanted} wanted; lower --cases or --test"
        )
    picked = [every[n * len(every) // wanted] for n in range(wanted)]
    step = wanted // options.test
    test = picked[::step][: options.test]
    return [case for case in picked if case not in test], test


def _measured(
    timeline: Timeline, models: Path, starter: Path, test: Sequence[Case]
) -> list[dict[str, Any]]:
    """Return the versions that served, in order, each with its mean DSC on the test cases."""
    served = [e for e in timeline.events if e["kind"] == "serves" and e["version"]]
    found = []
    for event in served:
        folder = models if (models / f"{event['version']}.safetensors").exists() else starter
        model = load_model(folder / f"{event['version']}.safetensors", best_device())
        result = validate(model, test, device=best_device())
        entry = {"version": event["version"], "since_s": event["s"], "mean_dsc": result.mean}
        found.append({**entry, "organ_dsc": result.organ_means})
    return found


def _infers(reader: SimulatedViewer) -> dict[str, Any]:
    seconds = sorted(one["s"] for one in reader.answers if one["status"] == 200)
    return {
        "asked": len(reader.answers),
        "answered": len(seconds),
        "before_the_first_model": len(reader.answers) - len(seconds) - len(reader.failed),
        "failed": reader.failed,
        "median_s": statistics.median(seconds) if seconds else None,
        "p95_s": seconds[int(0.95 * (len(seconds) - 1))] if seconds else None,
    }


def _print(found: Sequence[Mapping[str, Any]], infers: Mapping[str, Any]) -> None:
    print("\nversions that served, and their mean DSC on the test cases:")
    for one in found:
        minutes, seconds = divmod(int(one["since_s"]), 60)
        print(f"{minutes:3d}:{seconds:02d}  {one['version']}  {one['mean_dsc']:.3f}")
    print(json.dumps({**infers, "failed": len(infers["failed"])}))


if __name__ == "__main__":
    sys.exit(main())
