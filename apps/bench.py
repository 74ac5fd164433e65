"""Measure how long contouring takes, alone and beside a training, and how long the next case takes.

python -m apps.bench
"""

import sys

from typer import Option

from apps.support.console import program
from apps.support.options import Device


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
    infers: int = Option(
        40, help="Number of inference requests, alone and again beside a training; 0: none."
    ),
    studies: int = Option(2000, help="Number of studies to choose the next case from; 0: none."),
    pacs: int = Option(
        200, help="Number of studies in an Orthanc, to list and choose from; 0: none."
    ),
) -> int:
    """Measure how long contouring takes, alone and beside a training, and how long the next case takes.

    Compare ratios within one run, not seconds of different runs.
    """
    from apps.support import benchmarks, component_benchmarks, reading_benchmark
    from apps.support.server_process import ended_like_ctrl_c

    with ended_like_ctrl_c():
        if repeats:
            benchmarks.stages(recipes, repeats, device)
        if components:
            component_benchmarks.run(components)
        if readings:
            reading_benchmark.reading(readings)
        if infers:
            benchmarks.beside_training(infers, device)
        if studies:
            benchmarks.case_assignment(studies, device)
        if pacs:
            benchmarks.over_pacs(pacs)
    return 0


main = program(bench, "bench")

if __name__ == "__main__":
    sys.exit(main())
