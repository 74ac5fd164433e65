"""How long contouring takes, alone and beside a training, and asking for the next case; ratios within one run.

python -m apps.bench
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import requests
import torch

from apps.support.pacs_benchmark import seconds_with
from apps.support.server_process import serving
from lib.activelearning.score_records import Kind
from lib.activelearning.selection.catalogue import default_method
from lib.config import best_device
from lib.errors import OrganNetError, PacsError
from lib.imaging.volumes import CtVolume
from lib.inference.single_pass import contour
from lib.models.registry import Model, Registry, save_model
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP
from lib.recipes.yaml_files import find_recipe
from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import Score
from phantom import head_and_neck_phantom
from phantom.cohort import write_cohort

GRID_SHAPE = (512, 512, 120)
SPACING_MM = (1.0, 1.0, 2.5)


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.bench", description=__doc__.splitlines()[0]
    )
    flags.add_argument("--recipes", nargs="*", default=["openkbp", "pddca"])
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--device", default=best_device())
    flags.add_argument(
        "--infers", type=int, default=40, help="alone, and as many beside a training; 0: none"
    )
    flags.add_argument(
        "--studies", type=int, default=2000, help="to choose the next case from; 0: none"
    )
    flags.add_argument(
        "--pacs",
        type=int,
        default=200,
        help="studies in an Orthanc, to list and choose from; 0: none",
    )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parser().parse_args(argv)
    print(
        f"{'x'.join(map(str, GRID_SHAPE))} CT, {options.device}, {torch.get_num_threads()} threads"
    )
    print(f"{'recipe':10}{'prepare':>10}{'network':>10}{'restore':>10}{'total s':>10}{'ratio':>8}")
    ct, _ = head_and_neck_phantom(1, grid_shape=GRID_SHAPE, spacing_mm=SPACING_MM, labels={})
    first: float | None = None
    for name in options.recipes:
        stages = _measure(ct, name, options.device, options.repeats)
        total = sum(stages.values())
        first = first or total
        row = "".join(f"{stages[stage]:10.2f}" for stage in ("prepare", "network", "restore"))
        print(f"{name:10}{row}{total:10.2f}{total / first:8.2f}")
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process: {peak_gib:.2f} GiB")
    if options.infers:
        print(_beside_a_training(options.infers, options.device))
    if options.studies:
        print(_next_cases(options.studies, options.device))
    if options.pacs:
        print(_over_a_pacs(options.pacs))
    return 0


def _over_a_pacs(studies: int) -> str:
    """Return how long lists and choices take over HTTP with so many studies in a PACS."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = seconds_with(studies, Path(scratch))
        except PacsError as error:
            return f"no figures over a PACS: {error}"
    rows = (
        f"  {name:32} median {1000 * statistics.median(took):5.0f}  longest {1000 * max(took):5.0f}"
        for name, took in found.items()
    )
    return "\n".join([f"ms over a PACS with {studies} studies:", *rows])


def _next_cases(studies: int, device: str) -> str:
    """Return how long the default strategy takes over HTTP, with few and with many scored studies."""
    lines = [f"next case by {default_method(has_model=True)} over HTTP, milliseconds:"]
    medians = []
    for count in (10, studies):
        with tempfile.TemporaryDirectory(prefix="organnet-bench-") as name:
            seconds = _ask_often(Path(name), count, device)
        medians.append(statistics.median(seconds))
        p95 = statistics.quantiles(seconds, n=20)[-1]
        lines.append(
            f"  {count:5d} scored studies  median {1000 * medians[-1]:.0f}  p95 {1000 * p95:.0f}"
        )
    return "\n".join([*lines, f"  ratio of medians     {medians[1] / medians[0]:.2f}"])


def _ask_often(folder: Path, count: int, device: str, asks: int = 40) -> list[float]:
    """Return how long each of so many questions took, each of another client."""
    studies, models = folder / "studies", folder / "models"
    write_cohort(studies, recipe=OPENKBP, cases=1, labelled=0, seed=1, dicom_cases=0)
    names = [f"scan_{number:05d}" for number in range(count)]
    scan = studies / "demo_001.nii.gz"
    for name in names:
        (studies / f"{name}.nii.gz").hardlink_to(scan)
    scan.unlink()
    torch.manual_seed(0)
    weights = build_network(OPENKBP).state_dict()
    version = save_model(models, weights, OPENKBP, {"training": {}})
    Registry(models).publish(version, reason="for a measurement")
    _fill(Database(state_folder(str(studies), models) / FILE), names, version)
    conf = {"model_dir": str(models), "device": device, "auto_retrain": "off", "scoring": "off"}
    seconds = []
    with serving(studies, conf, log=folder / "server.log") as url, requests.Session() as http:
        # The first answers read the scores, which the server keeps from then on.
        for number in range(-2, asks):
            began = time.perf_counter()
            answer = http.post(
                f"{url}/activelearning/{default_method(has_model=True)}",
                json={"client_id": f"client-{number}"},
                timeout=60,
            )
            seconds.append(time.perf_counter() - began)
            answer.raise_for_status()
    return seconds[2:]


def _fill(database: Database, names: Sequence[str], version: str) -> None:
    """Put a score of each image into the database, as the worker would have."""
    rng = np.random.default_rng(1)
    with database.writing() as session:
        for name in names:
            entropy = float(rng.uniform(0.01, 0.3))
            shape = {"volume_ml": 20.0, "centroid_mm": [1.0, 2.0, 3.0], "pieces": 1}
            organs = {
                organ: {"entropy": entropy * float(rng.uniform(0.5, 1.5)), "shape": shape}
                for organ in OPENKBP.labels
            }
            features = [round(float(v), 4) for v in rng.normal(size=128)]
            found = {"entropy": entropy, "foreground": 0.1, "organs": organs, "features": features}
            session.add(
                Score(image_id=name, model_version=version, kind=Kind.PREDICTION.value, found=found)
            )
    database.close()


def _beside_a_training(count: int, device: str) -> str:
    """Return how long infers take over HTTP, alone and while a training runs on the same machine."""
    with tempfile.TemporaryDirectory(prefix="organnet-bench-") as name:
        folder = Path(name)
        write_cohort(folder / "studies", recipe=OPENKBP, cases=12, labelled=10, seed=1)
        conf = {"model_dir": str(folder / "models"), "device": device, "auto_retrain": "off"}
        with serving(folder / "studies", conf, log=folder / "server.log") as url:
            _seconds(url, 3)
            alone = _seconds(url, count)
            started = requests.post(
                f"{url}/train/organnet25d", json={"max_epochs": 10_000}, timeout=60
            )
            started.raise_for_status()
            _wait_for_steps(url)
            beside = _seconds(url, count)
            state = requests.get(f"{url}/organnet/status", timeout=60).json()["training"]
            requests.delete(f"{url}/train/", timeout=60)
    if state is None or state["state"] != "running":
        raise OrganNetError("the training ended while it was measured against")
    p95_alone, p95_beside = (statistics.quantiles(s, n=20)[-1] for s in (alone, beside))
    return (
        f"{count} infers over HTTP, 128 x 128 x 96 voxels, seconds:\n"
        f"  alone              median {statistics.median(alone):.2f}  p95 {p95_alone:.2f}\n"
        f"  beside a training  median {statistics.median(beside):.2f}  p95 {p95_beside:.2f}\n"
        f"  ratio of p95       {p95_beside / p95_alone:.2f}"
    )


def _seconds(url: str, count: int) -> list[float]:
    """Return how long each of so many infers took, half a second apart: the training gets its turns."""
    taken = []
    for number in range(count):
        began = time.perf_counter()
        answer = requests.post(
            f"{url}/infer/organnet25d",
            params={"image": f"demo_{1 + number % 12:03d}", "output": "json"},
            timeout=600,
        )
        taken.append(time.perf_counter() - began)
        answer.raise_for_status()
        time.sleep(0.5)
    return taken


def _wait_for_steps(url: str) -> None:
    """Return once the training has ended an epoch."""
    for _ in range(600):
        found = requests.get(f"{url}/organnet/status", timeout=60).json()["training"]
        if found and found["epoch"]:
            return
        time.sleep(1)
    raise OrganNetError("the training did not begin within ten minutes")


def _measure(ct: CtVolume, recipe_name: str, device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of each stage; the weights are random, which costs the same."""
    recipe = find_recipe(recipe_name)
    torch.manual_seed(0)
    network = build_network(recipe).eval().to(device).to(memory_format=torch.channels_last_3d)
    model = Model("bench", network, recipe, {})
    runs = []
    for _ in range(repeats):
        began = time.perf_counter()
        runs.append(contour(ct, model, device=device).seconds)
        print(f"  {recipe_name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}


if __name__ == "__main__":
    sys.exit(main())
