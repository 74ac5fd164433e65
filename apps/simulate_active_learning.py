"""Simulate active learning on a labelled data set, to compare query strategies.

python -m apps.simulate_active_learning --data FOLDER --preset small --processes 2 --output runs/strategies
"""

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import typer
from tqdm import tqdm
from typer import Option

from apps.support.console import ARGUMENTS, program
from apps.support.options import Device, LabelledStudies, RecipeName, one_of
from lib.errors import ConfigError

if TYPE_CHECKING:
    from lib.experiments.round_records import Round, RoundKey
    from lib.experiments.simulation import Simulation

STRATEGIES = ("random", "random_foreground", "entropy", "claspe", "structure_qc", "suggestive")

_Number = TypeVar("_Number", int, float)


def _strategies() -> Collection[str]:
    from lib.activelearning.selection.catalogue import METHODS

    return METHODS


@dataclass(frozen=True, kw_only=True)
class SimulateActiveLearning:
    """Simulate active learning on a labelled data set, to compare query strategies.

    Labels are revealed when a strategy selects their cases; the model is trained again and evaluated on a
    fixed test set. The data folder is not changed. The same command resumes a simulation that was stopped.
    """

    context: typer.Context
    data: LabelledStudies
    output: Path = Option(..., help="Folder for the rounds and the report.")
    strategies: list[str] = Option(
        list(STRATEGIES),
        metavar="NAME",
        help="Query strategies to compare.",
        show_default=" ".join(STRATEGIES),
        callback=one_of(_strategies),
    )
    seeds: int = Option(3, help="Number of random seeds.")
    budgets: list[int] = Option(
        [4, 8, 16, 32],
        metavar="N",
        help="Number of labels after each round; the first are drawn at random.",
        show_default="4 8 16 32",
    )
    pool: int = Option(60, help="Number of cases that can be selected.")
    test: int = Option(20, help="Number of held-out test cases.")
    pool_list: Path | None = Option(
        None, metavar="FILE", help="Ids of the pool cases, one per line."
    )
    test_list: Path | None = Option(
        None, metavar="FILE", help="Ids of the test cases, one per line."
    )
    recipe: RecipeName = "openkbp"
    preset: Literal["full", "small"] = Option(
        "full",
        help="small: coarser voxels, a narrow network, a short schedule. The options below override it.",
    )
    spacing_mm: list[float] | None = Option(
        None, metavar="MM", help="Voxel size in mm: one number, or x y z."
    )
    crop: list[int] | None = Option(
        None, metavar="VOXELS", help="Crop size in voxels: one number, or x y z."
    )
    width: int | None = Option(None, help="Channels of the network's first level.")
    steps: int | None = Option(None, help="Steps of each training.")
    start: Literal["scratch", "previous"] = Option(
        "scratch",
        "--from",
        help="Initial weights of each training; previous: those of the round before, as the server does.",
    )
    processes: int = Option(1, help="Number of parallel rounds; they share the cores.")
    device: Device = "auto"
    report_only: bool = Option(
        False, "--report-only", help="Train nothing; report the finished rounds."
    )

    def run(self) -> int:
        """Run the simulation and write its report; return the exit code."""
        from lib.experiments.protocol import write_protocol
        from lib.experiments.round_records import round_keys
        from lib.experiments.strategy_ranking import learning_curves
        from lib.experiments.strategy_report import write_report

        simulation = self._simulation()
        write_protocol(self.output, simulation.protocol)
        try:
            rounds = self._rounds(simulation)
        except KeyboardInterrupt:
            print("stopped; the same command resumes after the finished rounds", file=sys.stderr)
            return 130
        curves = learning_curves(simulation.protocol, rounds)
        if not curves:
            total = len(round_keys(simulation.protocol))
            print(
                f"{len(rounds)} of {total} rounds are finished; a report needs all rounds of a seed"
            )
            return 1
        arguments = self.context.meta[ARGUMENTS]
        lines = write_report(
            self.output,
            simulation.protocol,
            curves,
            conditions=self._conditions(simulation),
            command=shlex.join(["python", "-m", "apps.simulate_active_learning", *arguments]),
        )
        print("\n".join([*lines, f"see {self.output / 'report.html'}"]))
        return 0

    def _simulation(self) -> "Simulation":
        from lib.experiments import protocol
        from lib.experiments.simulation import Simulation
        from lib.recipes.yaml_files import find_recipe
        from lib.training.cases import digest_of, find_labelled_cases

        pool, test = protocol.split_cases(
            find_labelled_cases(self.data),
            pool=self.pool,
            test=self.test,
            listed_pool=protocol.read_ids(self.pool_list) if self.pool_list else None,
            listed_test=protocol.read_ids(self.test_list) if self.test_list else None,
        )
        overrides = protocol.Overrides(
            spacing_mm=_three(self.spacing_mm, "--spacing-mm"),
            crop_vox=_three(self.crop, "--crop"),
            width=self.width,
            steps=self.steps,
        ).with_defaults(protocol.PRESETS[self.preset])
        return Simulation(
            protocol=protocol.Protocol(
                strategies=tuple(self.strategies),
                seeds=self.seeds,
                budgets=tuple(self.budgets),
                pool={case.image_id: digest_of(case) for case in pool},
                test={case.image_id: digest_of(case) for case in test},
                recipe=protocol.apply_overrides(find_recipe(self.recipe), overrides),
                start=self.start,
                device=self.device,
            ),
            cases={case.image_id: case for case in (*pool, *test)},
            output=self.output,
        )

    def _rounds(self, simulation: "Simulation") -> Mapping["RoundKey", "Round"]:
        """Return the finished rounds, after running the missing rounds unless `--report-only` is given."""
        from lib.experiments.round_records import read_rounds, round_keys
        from lib.experiments.simulation import simulate

        keys = round_keys(simulation.protocol)
        if self.report_only:
            return read_rounds(self.output, keys)
        with (
            tqdm(total=len(simulation.cases), unit="case", desc="preparing", leave=False) as cases,
            tqdm(total=len(keys), unit="round", smoothing=0) as bar,
        ):

            def on_round(finished: "Round") -> None:
                bar.update()
                tqdm.write(_line(finished), file=sys.stderr)

            return simulate(
                simulation,
                processes=self.processes,
                on_ready=lambda _: cases.update(),
                on_round=on_round,
            )

    def _conditions(self, simulation: "Simulation") -> list[str]:
        """Return the conditions that are the same for all strategies, one sentence each."""
        protocol = simulation.protocol
        recipe, schedule = protocol.recipe, protocol.recipe.schedule
        budgets = ", ".join(str(budget) for budget in protocol.budgets)
        start = (
            "from the weights of the previous round"
            if protocol.start == "previous"
            else "from scratch"
        )
        spacing = " x ".join(f"{step:g}" for step in recipe.spacing_mm)
        crop = " x ".join(map(str, recipe.crop_vox))
        steps = schedule.epochs * schedule.steps_per_epoch
        return [
            f"Data: {self.data.resolve().name}; {len(protocol.pool)} pool cases and {len(protocol.test)} "
            f"test cases ({' '.join(sorted(protocol.test))}), the same for all strategies; DSC at the CT's own "
            "voxels.",
            f"Budgets: {budgets} labelled cases. The first {protocol.budgets[0]} cases are drawn at random and "
            "are the same for every strategy of a seed; so is the first model. The scores of a round come from "
            "the model of that round alone. A label is revealed when its round is trained.",
            f"Training: {start}, recipe `{recipe.name}`, voxels of {spacing} mm, `{recipe.network.name}` of "
            f"width {recipe.network.width}, crops of {crop}, {steps} steps of {schedule.batch_size} crops, "
            "weights of the last step. Every strategy uses the same random numbers in a seed and round.",
            f"Seeds: {protocol.seeds}. Device: {protocol.device}, {self.processes} rounds at a time.",
        ]


def _line(finished: "Round") -> str:
    key = finished.place
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in finished.seconds.items())
    return (
        f"seed {key.seed}, {key.strategy}, {finished.cost.cases} cases "
        f"({finished.cost.voxels:,} voxels): DSC {finished.dsc:.3f} ({seconds})"
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


main = program(SimulateActiveLearning, "simulate_active_learning")

if __name__ == "__main__":
    sys.exit(main())
