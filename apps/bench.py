"""How long contouring takes and how much memory it needs: seconds, and ratios within one run.

python -m apps.bench
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from lib.config import best_device
from lib.inference import contour
from lib.networks.build import build_network
from lib.phantom import head_and_neck_phantom
from lib.recipe_files import find_recipe
from lib.registry import Model
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
    return 0


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
