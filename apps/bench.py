"""How long contouring takes, alone and beside a training, and how much memory it needs; ratios within one run.

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

import requests
import torch

from lib.config import best_device
from lib.errors import OrganNetError
from lib.inference import contour
from lib.networks.build import build_network
from lib.phantom import head_and_neck_phantom
from lib.phantom.cohort import write_cohort
from lib.recipe_files import find_recipe
from lib.recipes import OPENKBP
from lib.registry import Model
from lib.rehearsal.server import serving
from lib.volumes import CtVolume

GRID_SHAPE = (512, 512, 120)
SPACING_MM = (1.0, 1.0, 2.5)


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.bench", description=__doc__.splitlines()[0]
    )
    flags.add_argument("--recipes", nargs="+", default=["openkbp", "pddca"])
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--device", default=best_device())
    flags.add_argument(
        "--infers", type=int, default=40, help="alone, and as many beside a training; 0: none"
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
    return 0


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
