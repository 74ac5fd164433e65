"""Functions to train one network, or several and compare them, with a progress bar."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace as Options
from typing import Any

from tqdm import tqdm

from lib.errors import ConfigError
from lib.experiments.network_comparison import compare_networks
from lib.experiments.network_runs import NetworkRun, network_runs
from lib.models.registry import load_model, save_model
from lib.networks.build import NETWORKS, with_network
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import find_recipe
from lib.retrain.candidate_evaluation import publish_candidate
from lib.retrain.training_set import evaluation_cases_of
from lib.training.cases import Case, find_labelled_cases, split
from lib.training.distributed import ProcessGroup, is_distributed, join_processes
from lib.training.progress import Tracker
from lib.training.record import as_yaml
from lib.training.run import Progress, RunCallbacks, RunOptions, Step, TrainedModel, train
from lib.training.trackers import Mlflow, TensorBoard


class ProgressBar:
    """A progress bar that moves with every step and shows the remaining time of the run."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._dsc = ""

    def __enter__(self) -> "ProgressBar":
        """Return the bar; it is shown from the start of the run."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bar and leave its last state on the screen."""
        self._bar.close()

    def start(self, record: Mapping[str, Any]) -> None:
        """Print the record of the run and show the bar."""
        print(as_yaml(record), flush=True)
        layout = "{percentage:3.0f}%|{bar}| step {n_fmt} of {total_fmt}{postfix}"
        self._bar = tqdm(total=1, bar_format=layout)

    def step(self, step: Step) -> None:
        """Move the bar to a step."""
        self._bar.total = step.total_steps
        self._bar.set_postfix_str(
            f"epoch {step.epoch}, loss {step.loss:.3f}{self._dsc}, {step.eta_s / 60:.1f} min left",
            refresh=False,
        )
        self._bar.update(step.step - self._bar.n)

    def epoch(self, progress: Progress) -> None:
        """Show the DSC of an epoch's validation."""
        self._dsc = "" if progress.metric is None else f", DSC {progress.metric:.3f}"
        self._bar.refresh()


def run_training(options: Options) -> int:
    """Train what the options of `apps.train` name; return the exit code."""
    try:
        runs = _runs(options)
        if len(runs) > 1:
            return _compare(runs, options)
        with join_processes(options.device) as group:
            _train_one(options, group)
    except KeyboardInterrupt:
        print("stopped; the same command resumes after the last epoch", file=sys.stderr)
        return 130
    return 0


def _runs(options: Options) -> list[NetworkRun]:
    """Return each combination of recipe, network and seed; without `--network`, the recipe's network."""
    if options.all_:
        networks: Sequence[str] = list(NETWORKS)
    else:
        networks = options.network or [find_recipe(options.recipe[0]).network.name]
    return network_runs(options.recipe, networks, options.seed)


def _train_one(options: Options, group: ProcessGroup) -> None:
    recipe = find_recipe(options.recipe[0])
    if options.network:
        recipe = with_network(recipe, options.network[0])
    run_options = RunOptions(
        seed=options.seed[0],
        device=group.device,
        max_minutes=options.max_minutes,
        cpu_minutes=options.budget_cpu_minutes,
        epochs=options.epochs,
        precision=options.precision,
        resume=not options.fresh,
    )
    trackers: list[Tracker] = []
    if options.tensorboard:
        trackers.append(TensorBoard(options.output / "tensorboard", pictures=options.pictures))
    if options.mlflow:
        trackers.append(Mlflow(options.mlflow, options.output))
    cases, held_out = _cases(options)
    with ProgressBar() as bar:
        trained = train(
            recipe,
            cases,
            held_out,
            run_dir=options.output,
            cache_dir=options.cache or options.output / "cache",
            options=run_options,
            initial=load_model(options.initial) if options.initial else None,
            callbacks=RunCallbacks(
                on_start=bar.start, on_progress=bar.epoch, on_step=bar.step, trackers=trackers
            ),
        )
    if group.is_first:
        _save(trained, recipe, held_out, options)


def _save(
    trained: TrainedModel, recipe: Recipe, held_out: Sequence[Case], options: Options
) -> None:
    """Write the model, print its DSC, and publish it with `--publish`."""
    folder = options.publish or options.output
    version = save_model(folder, trained.weights, recipe, trained.card)
    validation = trained.card["validation"]
    for organ, value in validation["organ_dice"].items():
        print(f"  {organ:16} DSC {value:.3f}")
    if validation["chose_the_weights"]:
        epoch = trained.card["training"]["weights_of_epoch"]
        print(f"  the weights of epoch {epoch} were chosen by these cases: not an independent test")
    print(f"model: {folder / version}.safetensors")
    if options.publish:
        is_published, reason = publish_candidate(
            options.publish,
            version,
            held_out,
            studies=options.studies,
            starter=options.starter_dir,
            by="apps.train",
            device=options.device,
        )
        print(f"{'published' if is_published else 'not published'}: {reason}")


def _compare(runs: Sequence[NetworkRun], options: Options) -> int:
    """Train the networks and compare them; return 0 if every run finished, else 1."""
    if options.publish or options.initial:
        raise ConfigError(
            "--publish and --initial are for a single run; compare first, then publish the best model"
        )
    if is_distributed():
        raise ConfigError(
            "a comparison starts its runs itself: run it without torchrun, with --jobs"
        )
    cases, held_out = _cases(options)
    if not held_out:
        raise ConfigError("there are no held-out cases to compare on; name some with --hold-out")
    failed = []
    with tqdm(total=len(runs), unit="run") as bar:

        def on_end(run: NetworkRun, error: str | None) -> None:
            bar.update()
            if error is not None:
                failed.append(run.folder)
                tqdm.write(f"{run.folder}: {error}", file=sys.stderr)

        results = compare_networks(
            runs,
            _command(options, held_out),
            options.output,
            held_out,
            device=options.device,
            jobs=options.jobs,
            conditions=_conditions(options, len(cases), len(held_out)),
            on_end=on_end,
        )
    best = max(results, key=lambda result: result.dsc)
    print(f"best mean DSC: {best.name}, {best.dsc:.3f}; see {options.output / 'comparison.md'}")
    return 1 if failed else 0


def _command(options: Options, held_out: Sequence[Case]) -> list[str]:
    """Return the command that trains one network, without the options that differ between runs."""
    command = [sys.executable, "-m", "apps.train", "--studies", str(options.studies)]
    command += ["--device", options.device, "--hold-out", *(case.image_id for case in held_out)]
    # All runs use the same cases in the same form, so they share one cache.
    command += ["--cache", str(options.cache or options.output / "cache")]
    for name in ("cases", "epochs", "max_minutes", "budget_cpu_minutes", "mlflow", "precision"):
        value = getattr(options, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--tensorboard" if options.tensorboard else "--no-tensorboard"]
    return command + [f"--{name}" for name in ("fresh", "pictures") if getattr(options, name)]


def _conditions(options: Options, cases: int, held_out: int) -> list[str]:
    """Return the conditions that are the same for all runs, a sentence each."""
    budget = "the recipe's whole schedule"
    if options.budget_cpu_minutes is not None:
        budget = (
            f"{options.budget_cpu_minutes:g} minutes of processor time for the training steps, with the "
            "schedule compressed to fit"
        )
    elif options.max_minutes is not None:
        budget = f"{options.max_minutes:g} minutes of wall-clock time, validation included"
    elif options.epochs is not None:
        budget = f"{options.epochs} epochs"
    return [
        f"Data: {options.studies.resolve().name}; {cases} training cases and {held_out} held-out test cases, "
        "evaluated at the CT's own voxels.",
        f"Recipe: {', '.join(Path(name).name for name in options.recipe)}; crops, augmentation, loss, "
        "optimiser and weight averaging are the same for all networks; each network has its usual width.",
        f"Budget of each run: {budget}. Device: {options.device}, {options.jobs} runs at a time.",
    ]


def _cases(options: Options) -> tuple[list[Case], list[Case]]:
    """Return the training cases and the held-out cases."""
    labelled = find_labelled_cases(options.studies)
    if options.hold_out:
        names = set(options.hold_out)
        cases = [case for case in labelled if case.image_id not in names]
        held_out = [case for case in labelled if case.image_id in names]
        missing = sorted(names - {case.image_id for case in held_out})
        if missing:
            raise ConfigError(f"--hold-out: no labelled case is named {', '.join(missing)}")
    else:
        # The server's evaluation cases stay out of this training too.
        cases, held_out = split(labelled, evaluation_ids=evaluation_cases_of(options.studies))
    return cases[: options.cases], held_out
