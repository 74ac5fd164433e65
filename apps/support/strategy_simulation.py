"""Functions to simulate active learning: the protocol, the rounds and the report."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace as Options
from typing import TypeVar

from tqdm import tqdm

from lib.errors import ConfigError
from lib.experiments.protocol import (
    PRESETS,
    Overrides,
    Protocol,
    apply_overrides,
    read_ids,
    split_cases,
    write_protocol,
)
from lib.experiments.round_records import Round, RoundKey, read_rounds, round_keys
from lib.experiments.simulation import Simulation, simulate
from lib.experiments.strategy_ranking import learning_curves
from lib.experiments.strategy_report import write_report
from lib.recipes.yaml_files import find_recipe
from lib.training.cases import digest_of, find_labelled_cases

_Number = TypeVar("_Number", int, float)


def run_simulation(options: Options, arguments: Sequence[str]) -> int:
    """Run the simulation that the options of `apps.simulate_active_learning` name.

    Args:
        options: Values of the options.
        arguments: Command-line arguments, for the report.

    Returns:
        The exit code.
    """
    simulation = _simulation(options)
    write_protocol(simulation.output, simulation.protocol)
    try:
        rounds = _rounds(simulation, options)
    except KeyboardInterrupt:
        print("stopped; the same command resumes after the finished rounds", file=sys.stderr)
        return 130
    curves = learning_curves(simulation.protocol, rounds)
    if not curves:
        total = len(round_keys(simulation.protocol))
        print(f"{len(rounds)} of {total} rounds are finished; a report needs all rounds of a seed")
        return 1
    lines = write_report(
        simulation.output,
        simulation.protocol,
        curves,
        conditions=_conditions(simulation, options),
        command=shlex.join(["python", "-m", "apps.simulate_active_learning", *arguments]),
    )
    print("\n".join([*lines, f"see {simulation.output / 'report.html'}"]))
    return 0


def _rounds(simulation: Simulation, options: Options) -> Mapping[RoundKey, Round]:
    """Return the finished rounds, after running the missing ones unless only a report is wanted."""
    keys = round_keys(simulation.protocol)
    if options.report_only:
        return read_rounds(simulation.output, keys)
    with (
        tqdm(total=len(simulation.cases), unit="case", desc="preparing", leave=False) as cases,
        tqdm(total=len(keys), unit="round", smoothing=0) as bar,
    ):

        def on_round(finished: Round) -> None:
            bar.update()
            tqdm.write(_line(finished), file=sys.stderr)

        return simulate(
            simulation,
            processes=options.processes,
            on_ready=lambda _: cases.update(),
            on_round=on_round,
        )


def _simulation(options: Options) -> Simulation:
    pool, test = split_cases(
        find_labelled_cases(options.data),
        pool=options.pool,
        test=options.test,
        listed_pool=read_ids(options.pool_list) if options.pool_list else None,
        listed_test=read_ids(options.test_list) if options.test_list else None,
    )
    overrides = Overrides(
        spacing_mm=_three(options.spacing_mm, "--spacing-mm"),
        crop_vox=_three(options.crop, "--crop"),
        width=options.width,
        steps=options.steps,
    )
    return Simulation(
        protocol=Protocol(
            strategies=tuple(options.strategies),
            seeds=options.seeds,
            budgets=tuple(options.budgets),
            pool={case.image_id: digest_of(case) for case in pool},
            test={case.image_id: digest_of(case) for case in test},
            recipe=apply_overrides(
                find_recipe(options.recipe), overrides.with_defaults(PRESETS[options.preset])
            ),
            start=options.start,
            device=options.device,
        ),
        cases={case.image_id: case for case in (*pool, *test)},
        output=options.output,
    )


def _three(values: Sequence[_Number] | None, flag: str) -> tuple[_Number, _Number, _Number] | None:
    """Return x, y and z; a single number stands for all three."""
    if not values:
        return None
    if len(values) not in (1, 3):
        raise ConfigError(
            f"{flag}: {len(values)} numbers; give one number, or three for x, y and z"
        )
    x, y, z = values if len(values) == 3 else (values[0],) * 3
    return (x, y, z)


def _line(finished: Round) -> str:
    key = finished.place
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in finished.seconds.items())
    return (
        f"seed {key.seed}, {key.strategy}, {finished.cost.cases} cases "
        f"({finished.cost.voxels:,} voxels): DSC {finished.dsc:.3f} ({seconds})"
    )


def _conditions(simulation: Simulation, options: Options) -> list[str]:
    """Return the conditions that are the same for all strategies, a sentence each."""
    protocol = simulation.protocol
    recipe, schedule = protocol.recipe, protocol.recipe.schedule
    budgets = ", ".join(str(budget) for budget in protocol.budgets)
    start = (
        "from the weights of the previous round" if protocol.start == "previous" else "from scratch"
    )
    spacing = " x ".join(f"{step:g}" for step in recipe.spacing_mm)
    crop = " x ".join(map(str, recipe.crop_vox))
    return [
        f"Data: {options.data.resolve().name}; {len(protocol.pool)} pool cases and {len(protocol.test)} test "
        f"cases ({' '.join(sorted(protocol.test))}), the same for all strategies; DSC at the CT's own voxels.",
        f"Budgets: {budgets} labelled cases. The first {protocol.budgets[0]} cases are drawn at random and "
        "are the same for every strategy of a seed; so is the first model. The scores of a round come from "
        "the model of that round alone. A label is revealed when its round is trained.",
        f"Training: {start}, recipe `{recipe.name}`, voxels of {spacing} mm, `{recipe.network.name}` of width "
        f"{recipe.network.width}, crops of {crop}, {schedule.epochs * schedule.steps_per_epoch} steps of "
        f"{schedule.batch_size} crops, weights of the last step. Every strategy uses the same random numbers "
        "in a seed and round.",
        f"Seeds: {protocol.seeds}. Device: {protocol.device}, {options.processes} rounds at a time.",
    ]
