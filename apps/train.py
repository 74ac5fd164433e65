"""Train a network on labelled cases, or several and compare them.

python -m apps.train --studies DIR --recipe openkbp --output runs/first
torchrun --nproc-per-node 2 -m apps.train --studies DIR --recipe pddca --output runs/second
python -m apps.train --studies DIR --all --budget-cpu-minutes 15 --output runs/all
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from tqdm import tqdm
from typer import Option

from apps.support.console import ARGUMENTS, program
from apps.support.options import STARTER_DIR, Device, LabelledStudies, one_of
from lib.errors import ConfigError
from lib.recipes.schema import NETWORK_NAMES, Recipe

if TYPE_CHECKING:
    from lib.experiments.network_runs import NetworkRun
    from lib.training.cases import Case
    from lib.training.distributed import ProcessGroup
    from lib.training.run import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a network on labelled cases, or several and compare them.

    Several values of --recipe, --network or --seed make a run of each combination, in a folder of its own below
    --output. comparison.html, .md, .csv and .png compare all runs with the first one on the held-out cases.
    """

    context: typer.Context
    studies: LabelledStudies
    output: Path = Option(..., help="Folder of the run: checkpoint and model.")
    cases: int | None = Option(None, help="Train on the first N cases that are not held out.")
    hold_out: list[str] | None = Option(
        None, metavar="ID", help="Cases that are never trained on; default: a fixed split."
    )
    recipe: list[str] = Option(
        ["openkbp"], help="Name of a recipe, or a YAML file.", show_default="openkbp"
    )
    network: list[str] | None = Option(
        None,
        help=f"Network to use instead of the recipe's, at its usual width: {', '.join(NETWORK_NAMES)}.",
        metavar="NAME",
        callback=one_of(lambda: NETWORK_NAMES),
    )
    seed: list[int] = Option([0], metavar="N", show_default="0")
    device: Device = "auto"
    precision: Literal["auto", "float32"] = Option("auto", help="auto: bfloat16 where it is fast.")
    initial: Path | None = Option(None, help="Weights (.safetensors) to start the training from.")
    cache: Path | None = Option(
        None, help="Folder of the prepared cases.", show_default="OUTPUT/cache"
    )
    fresh: bool = Option(False, "--fresh", help="Ignore the checkpoint in the output folder.")
    publish: Path | None = Option(
        None,
        metavar="MODEL_DIR",
        help="Model folder to add the model to; it becomes the active model if the promotion rule allows it.",
    )
    starter_dir: Path = Option(
        STARTER_DIR,
        help="Folder of the starter weights, which --publish compares with before a first promotion.",
        show_default="model/starter",
    )
    epochs: int | None = Option(None, help="Number of epochs instead of the recipe's.")
    max_minutes: float | None = Option(
        None, help="Wall-clock limit; the schedule is compressed to fit."
    )
    budget_cpu_minutes: float | None = Option(
        None,
        help="CPU-minute budget of the training steps, of all threads and without validation; the schedule "
        "is compressed to fit.",
    )
    tensorboard: bool = Option(
        True, help="Write loss, learning rate and DSC for TensorBoard into OUTPUT/tensorboard."
    )
    pictures: bool = Option(
        False,
        "--pictures",
        help="Also show the contours of the first held-out case in TensorBoard.",
    )
    mlflow: str | None = Option(
        None, metavar="URI", help="Log to MLflow: sqlite:///FILE, a server or a database."
    )
    all_: bool = Option(False, "--all", help="Train every network.")
    jobs: int = Option(1, help="Number of parallel trainings; they share the cores.")

    def run(self) -> int:
        """Train, and return the exit code."""
        from lib.experiments.network_runs import network_runs
        from lib.networks.build import NETWORKS
        from lib.recipes.yaml_files import find_recipe
        from lib.training.distributed import join_processes

        networks = list(NETWORKS) if self.all_ else self.network
        networks = networks or [find_recipe(self.recipe[0]).network.name]
        runs = network_runs(self.recipe, networks, self.seed)
        try:
            if len(runs) > 1:
                return self._compare(runs)
            with join_processes(self.device) as group:
                self._train(runs[0], group)
        except KeyboardInterrupt:
            print("stopped; the same command resumes after the last epoch", file=sys.stderr)
            return 130
        return 0

    def _train(self, run: "NetworkRun", group: "ProcessGroup") -> None:
        from apps.support.progress_bar import ProgressBar
        from lib.models.registry import load_model
        from lib.networks.build import with_network
        from lib.recipes.yaml_files import find_recipe
        from lib.training.progress import Tracker
        from lib.training.run import RunCallbacks, RunOptions, train
        from lib.training.trackers import Mlflow, TensorBoard

        options = RunOptions(
            seed=run.seed,
            device=group.device,
            max_minutes=self.max_minutes,
            cpu_minutes=self.budget_cpu_minutes,
            epochs=self.epochs,
            precision=self.precision,
            resume=not self.fresh,
        )
        trackers: list[Tracker] = []
        if self.tensorboard:
            trackers.append(TensorBoard(self.output / "tensorboard", pictures=self.pictures))
        if self.mlflow:
            trackers.append(Mlflow(self.mlflow, self.output))
        recipe = with_network(find_recipe(run.recipe), run.network)
        cases, held_out = self._cases()
        with closing(ProgressBar()) as bar:
            trained = train(
                recipe,
                cases,
                held_out,
                run_dir=self.output,
                cache_dir=self.cache or self.output / "cache",
                options=options,
                initial=load_model(self.initial) if self.initial else None,
                callbacks=RunCallbacks(
                    on_start=bar.start, on_progress=bar.epoch, on_step=bar.step, trackers=trackers
                ),
            )
        if group.is_first:
            self._save(trained, recipe, held_out)

    def _save(self, trained: "TrainedModel", recipe: Recipe, held_out: Sequence["Case"]) -> None:
        """Write the model, print its DSC, and publish it with `--publish`."""
        from lib.models.registry import save_model
        from lib.retrain.candidate_evaluation import publish_candidate

        folder = self.publish or self.output
        version = save_model(folder, trained.weights, recipe, trained.card)
        validation = trained.card["validation"]
        for organ, value in validation["organ_dice"].items():
            print(f"  {organ:16} DSC {value:.3f}")
        if validation["chose_the_weights"]:
            epoch = trained.card["training"]["weights_of_epoch"]
            print(
                f"  the weights of epoch {epoch} were chosen by these cases: not an independent test"
            )
        print(f"model: {folder / version}.safetensors")
        if self.publish:
            is_published, reason = publish_candidate(
                self.publish,
                version,
                held_out,
                studies=self.studies,
                starter=self.starter_dir,
                by="apps.train",
                device=self.device,
            )
            print(f"{'published' if is_published else 'not published'}: {reason}")

    def _compare(self, runs: Sequence["NetworkRun"]) -> int:
        """Train the networks and compare them; return 0 if every run finished, else 1."""
        from lib.experiments.network_comparison import compare_networks
        from lib.training.distributed import is_distributed

        if self.publish or self.initial:
            raise ConfigError(
                "--publish and --initial are for a single run; compare first, then publish the best model"
            )
        if is_distributed():
            raise ConfigError(
                "a comparison starts its runs itself: run it without torchrun, with --jobs"
            )
        cases, held_out = self._cases()
        if not held_out:
            raise ConfigError(
                "there are no held-out cases to compare on; name some with --hold-out"
            )
        # Each run gets these arguments; if an option is given twice, the last value counts. All runs use
        # the same cases in the same form, so they share one cache.
        arguments = [word for word in self.context.meta[ARGUMENTS] if word != "--all"]
        arguments += ["--device", self.device, "--cache", str(self.cache or self.output / "cache")]
        arguments += ["--hold-out", *(case.image_id for case in held_out)]
        failed = []
        with tqdm(total=len(runs), unit="run") as bar:

            def on_end(run: "NetworkRun", error: str | None) -> None:
                bar.update()
                if error is not None:
                    failed.append(run.folder)
                    tqdm.write(f"{run.folder}: {error}", file=sys.stderr)

            results = compare_networks(
                runs,
                [sys.executable, "-m", "apps.train", *arguments],
                self.output,
                held_out,
                device=self.device,
                jobs=self.jobs,
                conditions=self._conditions(len(cases), len(held_out)),
                on_end=on_end,
            )
        best = max(results, key=lambda result: result.dsc)
        print(f"best mean DSC: {best.name}, {best.dsc:.3f}; see {self.output / 'comparison.md'}")
        return 1 if failed else 0

    def _conditions(self, cases: int, held_out: int) -> list[str]:
        """Return the conditions that are the same for all runs, one sentence each."""
        budget = "the recipe's whole schedule"
        if self.budget_cpu_minutes is not None:
            budget = (
                f"{self.budget_cpu_minutes:g} minutes of processor time for the training steps, with the "
                "schedule compressed to fit"
            )
        elif self.max_minutes is not None:
            budget = f"{self.max_minutes:g} minutes of wall-clock time, validation included"
        elif self.epochs is not None:
            budget = f"{self.epochs} epochs"
        return [
            f"Data: {self.studies.resolve().name}; {cases} training cases and {held_out} held-out test cases, "
            "evaluated at the CT's own voxels.",
            f"Recipe: {', '.join(Path(name).name for name in self.recipe)}; crops, augmentation, loss, "
            "optimiser and weight averaging are the same for all networks; each network has its usual width.",
            f"Budget of each run: {budget}. Device: {self.device}, {self.jobs} runs at a time.",
        ]

    def _cases(self) -> tuple[list["Case"], list["Case"]]:
        """Return the training cases and the held-out cases."""
        from lib.retrain.training_set import evaluation_cases_of
        from lib.training.cases import find_labelled_cases, split

        labelled = find_labelled_cases(self.studies)
        if not self.hold_out:
            # The server's evaluation cases stay out of this training too.
            cases, held_out = split(labelled, evaluation_ids=evaluation_cases_of(self.studies))
            return cases[: self.cases], held_out
        if missing := sorted(set(self.hold_out) - {case.image_id for case in labelled}):
            raise ConfigError(f"--hold-out: no labelled case is named {', '.join(missing)}")
        cases = [case for case in labelled if case.image_id not in self.hold_out]
        held_out = [case for case in labelled if case.image_id in self.hold_out]
        return cases[: self.cases], held_out


main = program(Train, "train")

if __name__ == "__main__":
    sys.exit(main())
