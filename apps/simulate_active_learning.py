"""Simulate active learning on a labelled data set, to compare query strategies.

python -m apps.simulate_active_learning --data FOLDER --preset small --processes 2 --output runs/strategies

Labels are revealed when a strategy selects their cases; the model is trained again and evaluated on a fixed
test set. FOLDER is not changed. The same command resumes a simulation that was stopped.
"""

import sys
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import typer
from typer import Option

from apps.support.console import ARGUMENTS, program
from apps.support.options import Device, LabelledStudies, RecipeName, device_name, one_of

STRATEGIES = ("random", "random_foreground", "entropy", "claspe", "structure_qc", "suggestive")


def _strategies() -> Collection[str]:
    from lib.activelearning.selection.catalogue import METHODS

    return METHODS


def simulate_active_learning(
    context: typer.Context,
    data: LabelledStudies,
    output: Path = Option(..., help="Folder for the rounds and the report."),
    strategies: list[str] | None = Option(
        None,
        metavar="NAME",
        help="Query strategies to compare.",
        show_default=" ".join(STRATEGIES),
        callback=one_of(_strategies),
    ),
    seeds: int = Option(3, help="Number of random seeds."),
    budgets: list[int] | None = Option(
        None,
        metavar="N",
        help="Number of labels after each round; the first are drawn at random.",
        show_default="4 8 16 32",
    ),
    pool: int = Option(60, help="Number of cases that can be selected."),
    test: int = Option(20, help="Number of held-out test cases."),
    pool_list: Path | None = Option(
        None, metavar="FILE", help="Ids of the pool cases, one per line."
    ),
    test_list: Path | None = Option(
        None, metavar="FILE", help="Ids of the test cases, one per line."
    ),
    recipe: RecipeName = "openkbp",
    preset: Literal["full", "small"] = Option(
        "full",
        help="small: coarser voxels, a narrow network, a short schedule. The options below override it.",
    ),
    spacing_mm: list[float] | None = Option(
        None, metavar="MM", help="Voxel size in mm: one number, or x y z."
    ),
    crop: list[int] | None = Option(
        None, metavar="VOXELS", help="Crop size in voxels: one number, or x y z."
    ),
    width: int | None = Option(None, help="Channels of the network's first level."),
    steps: int | None = Option(None, help="Steps of each training."),
    start: Literal["scratch", "previous"] = Option(
        "scratch",
        "--from",
        help="Initial weights of each training; previous: those of the round before, as the server does.",
    ),
    processes: int = Option(1, help="Number of parallel rounds; they share the cores."),
    device: Device = "auto",
    report_only: bool = Option(
        False, "--report-only", help="Train nothing; report the finished rounds."
    ),
) -> int:
    """Simulate active learning on a labelled data set, to compare query strategies.

    Labels are revealed when a strategy selects their cases; the model is trained again and evaluated on a
    fixed test set. The data folder is not changed. The same command resumes a simulation that was stopped.
    """
    options = SimpleNamespace(**locals())
    from apps.support.strategy_simulation import run_simulation

    options.device = device_name(device)
    options.strategies, options.budgets = strategies or STRATEGIES, budgets or (4, 8, 16, 32)
    return run_simulation(options, context.meta[ARGUMENTS])


main = program(simulate_active_learning, "simulate_active_learning")

if __name__ == "__main__":
    sys.exit(main())
