"""Query strategies against each other: labels revealed on request, retrained, judged on a fixed test set.

python -m apps.simulate_active_learning --data FOLDER --preset small --processes 2 --output runs/strategies

Nothing of FOLDER is changed. A simulation that was stopped goes on with the same command.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from lib.activelearning.selection.catalogue import METHODS
from lib.errors import ConfigError, OrganNetError
from lib.experiments.presets import PRESETS, Overrides, smaller
from lib.experiments.protocol import Protocol, divided, read_ids, write_protocol
from lib.experiments.round_records import Round, places, read_rounds
from lib.experiments.strategies import simulate
from lib.experiments.strategy_ranking import curves
from lib.experiments.strategy_report import write_report
from lib.experiments.strategy_round import Simulation
from lib.recipes.yaml_files import find_recipe
from lib.training.cases import digest_of, find_labelled_cases

_Number = TypeVar("_Number", int, float)
STRATEGIES = ("random", "random_foreground", "entropy", "claspe", "structure_qc", "suggestive")


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.simulate_active_learning", description=__doc__.splitlines()[0]
    )
    _protocol_flags(flags.add_argument_group("what is compared, on what"))
    _training_flags(flags.add_argument_group("how it is trained"))
    group = flags.add_argument_group("how it runs")
    group.add_argument("--output", type=Path, required=True, help="rounds, report; goes on there")
    group.add_argument(
        "--processes", type=int, default=1, help="rounds at once, each on its share of the cores"
    )
    group.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.add_argument(
        "--report-only",
        action="store_true",
        help="train nothing: report on the rounds that are over",
    )
    return flags


def _protocol_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--data", type=Path, required=True, help="labelled cases, as for apps.train")
    add(
        "--strategies",
        nargs="+",
        default=STRATEGIES,
        metavar="NAME",
        choices=METHODS,
        help=f"of {', '.join(METHODS)}; default: {' '.join(STRATEGIES)}",
    )
    add("--seeds", type=int, default=3, help="how many first draws (default: 3)")
    add(
        "--budgets",
        type=int,
        nargs="+",
        default=(4, 8, 16, 32),
        metavar="N",
        help="labels after each round; the first are drawn at random (default: 4 8 16 32)",
    )
    add("--pool", type=int, default=60, help="cases that can be asked for (default: 60)")
    add("--test", type=int, default=20, help="cases that judge, never asked for (default: 20)")
    add("--pool-list", type=Path, metavar="FILE", help="ids of the pool, one a line")
    add("--test-list", type=Path, metavar="FILE", help="ids of the test cases, one a line")


def _training_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--recipe", default="openkbp", help="name of a recipe, or a YAML file")
    add(
        "--preset",
        choices=PRESETS,
        default="full",
        help="small: coarser voxels, a narrow network, a short schedule; the flags below go before it",
    )
    add("--spacing-mm", type=float, nargs="+", metavar="MM", help="one number, or x y z")
    add("--crop", type=int, nargs="+", metavar="VOXELS", help="one number, or x y z")
    add("--width", type=int, help="channels of the network's first level")
    add("--steps", type=int, help="of each training")
    add(
        "--from",
        dest="start",
        choices=("scratch", "previous"),
        default="scratch",
        help="where a training starts; previous: the weights of the round before, as the server does",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    typed = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(typed)
    try:
        simulation = _simulation(options)
        write_protocol(simulation.output, simulation.protocol)
        return _run(simulation, options, typed)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the rounds that are over", file=sys.stderr)
        return 130


def _run(simulation: Simulation, options: argparse.Namespace, typed: Sequence[str]) -> int:
    every = places(simulation.protocol)
    if options.report_only:
        over = read_rounds(simulation.output, every)
    else:
        with (
            tqdm(total=len(simulation.cases), unit="case", desc="preparing", leave=False) as cases,
            tqdm(total=len(every), unit="round", smoothing=0) as rounds,
        ):

            def told(found: Round) -> None:
                rounds.update()
                tqdm.write(_line(found), file=sys.stderr)

            over = simulate(
                simulation,
                processes=options.processes,
                on_ready=lambda _: cases.update(),
                on_round=told,
            )
    found = curves(simulation.protocol, over)
    if not found:
        print(
            f"{len(over)} of {len(every)} rounds are over: no seed has all of its, nothing to report"
        )
        return 1
    said = write_report(
        simulation.output,
        simulation.protocol,
        found,
        conditions=_conditions(simulation, options),
        command=shlex.join(["python", "-m", "apps.simulate_active_learning", *typed]),
    )
    print("\n".join([*said, f"see {simulation.output / 'report.html'}"]))
    return 0


def _simulation(options: argparse.Namespace) -> Simulation:
    """Return what the flags ask for."""
    pool, test = divided(
        find_labelled_cases(options.data),
        pool=options.pool,
        test=options.test,
        listed_pool=read_ids(options.pool_list) if options.pool_list else None,
        listed_test=read_ids(options.test_list) if options.test_list else None,
    )
    return Simulation(
        protocol=Protocol(
            strategies=tuple(options.strategies),
            seeds=options.seeds,
            budgets=tuple(options.budgets),
            pool={case.image_id: digest_of(case) for case in pool},
            test={case.image_id: digest_of(case) for case in test},
            recipe=smaller(find_recipe(options.recipe), _changes(options)),
            start=options.start,
            device=options.device,
        ),
        cases={case.image_id: case for case in (*pool, *test)},
        output=options.output,
    )


def _changes(options: argparse.Namespace) -> Overrides:
    asked = Overrides(
        spacing_mm=_three(options.spacing_mm, "--spacing-mm"),
        crop_vox=_three(options.crop, "--crop"),
        width=options.width,
        steps=options.steps,
    )
    return asked.over(PRESETS[options.preset])


def _three(values: Sequence[_Number] | None, flag: str) -> tuple[_Number, _Number, _Number] | None:
    """Return x, y and z; one number stands for all of them."""
    if values is None:
        return None
    if len(values) not in (1, 3):
        raise ConfigError(f"{flag}: one number, or three for x, y and z, not {len(values)}")
    x, y, z = values if len(values) == 3 else (values[0],) * 3
    return (x, y, z)


def _line(found: Round) -> str:
    place = found.place
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in found.seconds.items())
    return (
        f"seed {place.seed}, {place.strategy}, {found.cost.cases} cases "
        f"({found.cost.voxels:,} voxels): DSC {found.dsc:.3f} ({seconds})"
    )


def _conditions(simulation: Simulation, options: argparse.Namespace) -> list[str]:
    """Return what is the same for all, a sentence each."""
    protocol = simulation.protocol
    recipe, schedule = protocol.recipe, protocol.recipe.schedule
    budgets = ", ".join(str(budget) for budget in protocol.budgets)
    start = (
        "from the weights of the round before" if protocol.start == "previous" else "from scratch"
    )
    spacing = " x ".join(f"{step:g}" for step in recipe.spacing_mm)
    crop = " x ".join(map(str, recipe.crop_vox))
    return [
        f"Data: {options.data.resolve().name}; {len(protocol.pool)} cases can be asked for, "
        f"{len(protocol.test)} others judge ({' '.join(sorted(protocol.test))}), the same for all; DSC at the "
        "CT's own voxels.",
        f"Budgets: {budgets} labelled cases; the first {protocol.budgets[0]} are drawn at random, alike for "
        "every strategy of a seed, and the first model is one for all. Scores of a round come from its model "
        "alone; a label is known once its round is trained.",
        f"Training: {start}, recipe `{recipe.name}`, voxels of {spacing} mm, `{recipe.network.name}` of width "
        f"{recipe.network.width}, crops of {crop}, {schedule.epochs * schedule.steps_per_epoch} steps of "
        f"{schedule.batch_size}, the weights of the last; the same random numbers for every strategy of a seed "
        "and round.",
        f"Seeds: {protocol.seeds}. Device: {protocol.device}, {options.processes} rounds at a time.",
    ]


if __name__ == "__main__":
    sys.exit(main())
