"""Measure how long contouring takes, alone and beside a training, and how long the next case takes.

python -m apps.bench
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Option

from apps.support.console import program
from apps.support.options import Device

if TYPE_CHECKING:
    from apps.support.benchmark_record import Section


def bench(
    recipes: list[str] = Option(
        ["openkbp", "pddca"], help="Recipes to measure.", show_default="openkbp pddca"
    ),
    repeats: int = Option(3, help="Number of runs of each recipe; 0: none."),
    readings: int = Option(3, help="Number of readings of a CT in each format; 0: none."),
    device: Device = "auto",
    components: int = Option(
        2000, help="Number of images for the computations of the server alone; 0: none."
    ),
    steps: int = Option(5, help="Number of measurements of a training step; 0: none."),
    infers: int = Option(
        40, help="Number of inference requests, alone and again beside a training; 0: none."
    ),
    studies: int = Option(
        2000, help="Number of studies in a folder, for lists, labels and the next case; 0: none."
    ),
    pacs: int = Option(
        200, help="Number of studies in an Orthanc, to list and choose from; 0: none."
    ),
    versus_monailabel: int = Option(
        1,
        help="Number of runs of MONAI Label's own inference task with DynUNet, SegResNet and OrganNet2.5D, "
        "beside this server's code, for each recipe; 0: none.",
    ),
    json: Path | None = Option(None, help="File for all figures, with machine, versions and load."),
) -> int:
    """Measure how long contouring takes, alone and beside a training, and how long the next case takes.

    Compare ratios within one run, not seconds of different runs. Exit status 1: other programs were running, so
    that the figures prove nothing.
    """
    from apps.support import (
        benchmarks,
        component_benchmarks,
        reading_benchmark,
        studies_benchmark,
        training_benchmark,
    )
    from apps.support.benchmark_record import BenchmarkRecord
    from apps.support.inference_benchmark import against_monailabel, backends
    from apps.support.machine import OtherLoad
    from apps.support.server_process import ended_like_ctrl_c
    from lib.storage.atomic_files import write_json

    parts: tuple[tuple[int, Callable[[], Section]], ...] = (
        (repeats, lambda: benchmarks.stages(recipes, repeats, device)),
        (repeats, lambda: backends(recipes, device)),
        *(
            (
                versus_monailabel,
                partial(against_monailabel, recipe, versus_monailabel, device),
            )
            for recipe in recipes
        ),
        (components, lambda: component_benchmarks.run(components)),
        (readings, lambda: reading_benchmark.reading(readings)),
        (steps, lambda: training_benchmark.training_steps("openkbp", steps)),
        (infers, lambda: benchmarks.beside_training(infers, device)),
        (studies, lambda: studies_benchmark.requests_by_studies(studies, device)),
        (pacs, lambda: benchmarks.over_pacs(pacs)),
    )
    record = BenchmarkRecord(" ".join(["organnet bench", *sys.argv[1:]]))
    with ended_like_ctrl_c():
        for size, measure in parts:
            if size:
                with OtherLoad() as load:
                    section = measure()
                record.add(section, load)
    result = record.as_dict()
    print(f"{'conclusive' if result['conclusive'] else 'NOT conclusive'}: {result['why']}")
    if json is not None:
        write_json(json, result)
        print(f"wrote {json}")
    return 0 if result["conclusive"] else 1


main = program(bench, "bench")

if __name__ == "__main__":
    sys.exit(main())
