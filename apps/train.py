"""Train a network on labelled cases, or several and compare them.

python -m apps.train --studies DIR --recipe openkbp --output runs/first
torchrun --nproc-per-node 2 -m apps.train --studies DIR --recipe pddca --output runs/second
python -m apps.train --studies DIR --all --budget-cpu-minutes 15 --output runs/all
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from apps.support.progress_bar import Bar
from lib.errors import ConfigError, OrganNetError
from lib.experiments.network_runs import NetworkRun, network_runs
from lib.experiments.networks import compare
from lib.models.registry import Registry, load_model, save_model
from lib.networks.build import NETWORKS, with_network
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import find_recipe
from lib.retrain.case_set_records import judges_of
from lib.training.cases import Case, find_labelled_cases, split
from lib.training.distributed import ProcessGroup, is_distributed, join_processes
from lib.training.gate import publish_if_not_worse
from lib.training.progress import Tracker
from lib.training.run import RunCallbacks, RunOptions, TrainedModel, train
from lib.training.trackers import Mlflow, TensorBoard


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.train", description=__doc__.splitlines()[0]
    )
    _data_flags(flags.add_argument_group("what is learned from"))
    _run_flags(flags.add_argument_group("how"))
    _output_flags(flags.add_argument_group("what comes of it"))
    _tracking_flags(flags.add_argument_group("curves"))
    _comparison_flags(flags.add_argument_group("several runs, compared on the held-out cases"))
    return flags


def _data_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--studies", type=Path, required=True, help="a studies folder, or one folder per case")
    add("--cases", type=int, help="train on the first N cases that are not held out")
    add("--hold-out", nargs="*", default=[], metavar="ID", help="never train on these cases")


def _run_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add(
        "--recipe",
        nargs="+",
        default=["openkbp"],
        metavar="RECIPE",
        help="name of a recipe, or a YAML file",
    )
    add(
        "--network",
        nargs="+",
        metavar="NAME",
        choices=NETWORKS,
        help=f"in place of the recipe's, at its usual width: {', '.join(NETWORKS)}",
    )
    add("--epochs", type=int, help="in place of the recipe's")
    add("--max-minutes", type=float, help="compress the schedule to end by then, by the clock")
    add(
        "--budget-cpu-minutes",
        type=float,
        help="compress the schedule to so much processor time of all threads; validation is not counted",
    )
    add("--seed", type=int, nargs="+", default=[0], metavar="N")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--precision", choices=("auto", "float32"), default="auto", help="auto: bfloat16 where fast"
    )
    add("--initial", type=Path, help="weights (.safetensors) to start from")


def _output_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--output", type=Path, required=True, help="where the run's checkpoint and model go")
    add("--cache", type=Path, help="where prepared cases are kept; default: the output's")
    add("--fresh", action="store_true", help="do not go on from the output's checkpoint")
    add("--publish", type=Path, metavar="MODEL_DIR", help="serve the result if it is not worse")


def _tracking_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write loss, learning rate and DSC for TensorBoard into OUTPUT/tensorboard (default: on)",
    )
    add(
        "--pictures",
        action="store_true",
        help="show TensorBoard what is drawn on the first held-out case",
    )
    add("--mlflow", metavar="URI", help="log to MLflow: sqlite:///FILE, or a server or database")


def _comparison_flags(flags: argparse._ArgumentGroup) -> None:
    flags.description = (
        "Several values of --recipe, --network or --seed make a run of each combination, in a folder of its "
        "own below --output, and comparison.md, .csv and .png of all; the others are compared with the first."
    )
    add = flags.add_argument
    add("--all", action="store_true", help="every network there is")
    add("--jobs", type=int, default=1, help="trainings at once, each on its share of the cores")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parser().parse_args(argv)
    try:
        several = _everyone(options)
        if len(several) > 1:
            return _compare(several, options)
        with join_processes(options.device) as group:
            _run(options, group)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace, group: ProcessGroup) -> None:
    run_options = _run_options(options, group.device)
    recipe = find_recipe(options.recipe[0])
    if options.network:
        recipe = with_network(recipe, options.network[0])
    cases, held_out = _chosen(options)
    with Bar() as bar:
        trained = train(
            recipe,
            cases,
            held_out,
            run_dir=options.output,
            cache_dir=options.cache or options.output / "cache",
            options=run_options,
            initial=load_model(options.initial) if options.initial else None,
            callbacks=RunCallbacks(
                on_start=bar.start,
                on_progress=bar.epoch,
                on_step=bar.step,
                trackers=_trackers(options),
            ),
        )
    if group.is_first:
        _keep(trained, recipe, held_out, options)


def _run_options(options: argparse.Namespace, device: str) -> RunOptions:
    return RunOptions(
        seed=options.seed[0],
        device=device,
        max_minutes=options.max_minutes,
        cpu_minutes=options.budget_cpu_minutes,
        epochs=options.epochs,
        precision=options.precision,
        resume=not options.fresh,
    )


def _trackers(options: argparse.Namespace) -> list[Tracker]:
    trackers: list[Tracker] = []
    if options.tensorboard:
        trackers.append(TensorBoard(options.output / "tensorboard", pictures=options.pictures))
    if options.mlflow:
        trackers.append(Mlflow(options.mlflow, options.output))
    return trackers


def _keep(
    trained: TrainedModel, recipe: Recipe, held_out: Sequence[Case], options: argparse.Namespace
) -> None:
    """Write the model, say how it did, and publish it where that is asked for."""
    folder = options.publish or options.output
    version = save_model(folder, trained.weights, recipe, trained.card)
    for organ, value in trained.card["validation"]["organ_dice"].items():
        print(f"  {organ:16} DSC {value:.3f}")
    if trained.card["validation"]["chose_the_weights"]:
        epoch = trained.card["training"]["weights_of_epoch"]
        print(f"  of epoch {epoch}, chosen by these cases: no test of the model")
    print(f"model: {folder / version}.safetensors")
    if options.publish:
        published, reason = publish_if_not_worse(
            Registry(options.publish), version, held_out, device=options.device
        )
        print(f"{'published' if published else 'not published'}: {reason}")


def _everyone(options: argparse.Namespace) -> list[NetworkRun]:
    """Return the runs that were asked for; of one recipe without `--network`, its own network."""
    if options.all:
        networks = list(NETWORKS)
    else:
        networks = options.network or [find_recipe(options.recipe[0]).network.name]
    return network_runs(options.recipe, networks, options.seed)


def _compare(everyone: Sequence[NetworkRun], options: argparse.Namespace) -> int:
    """Train and compare; return 0 if every run came to its end, else 1."""
    if options.publish or options.initial:
        raise ConfigError(
            "--publish and --initial are for one run; compare first, then publish the better"
        )
    if is_distributed():
        raise ConfigError("a comparison starts its runs itself: leave torchrun out, see --jobs")
    cases, held_out = _chosen(options)
    if not held_out:
        raise ConfigError("nothing to compare on: no case is held out; see --hold-out")
    failed = []
    with tqdm(total=len(everyone), unit="run") as bar:

        def ended(contender: NetworkRun, why: str | None) -> None:
            bar.update()
            if why is not None:
                failed.append(contender.folder)
                tqdm.write(f"{contender.folder}: {why}", file=sys.stderr)

        found = compare(
            everyone,
            _command(options, held_out),
            options.output,
            held_out,
            device=options.device,
            jobs=options.jobs,
            conditions=_conditions(options, len(cases), len(held_out)),
            on_end=ended,
        )
    best = max(found, key=lambda standing: standing.dsc)
    print(f"best mean DSC: {best.name}, {best.dsc:.3f}; see {options.output / 'comparison.md'}")
    return 1 if failed else 0


def _command(options: argparse.Namespace, held_out: Sequence[Case]) -> list[str]:
    """Return what trains one contender: this program, with what is the same for all."""
    command = [sys.executable, "-m", "apps.train", "--studies", str(options.studies)]
    command += ["--device", options.device, "--hold-out", *(case.image_id for case in held_out)]
    # The contenders see the same cases in the same form: one cache serves all.
    command += ["--cache", str(options.cache or options.output / "cache")]
    for flag in ("cases", "epochs", "max_minutes", "budget_cpu_minutes", "mlflow"):
        value = getattr(options, flag)
        if value is not None:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    command += ["--precision", options.precision]
    command += ["--tensorboard" if options.tensorboard else "--no-tensorboard"]
    command += ["--pictures"] if options.pictures else []
    command += ["--mlflow", options.mlflow] if options.mlflow else []
    command += ["--tensorboard" if options.tensorboard else "--no-tensorboard"]
    return command + [f"--{flag}" for flag in ("fresh", "pictures") if getattr(options, flag)]


def _conditions(options: argparse.Namespace, cases: int, held_out: int) -> list[str]:
    """Return what is the same for all, a sentence each."""
    budget = "the recipe's whole schedule"
    if options.budget_cpu_minutes is not None:
        budget = (
            f"{options.budget_cpu_minutes:g} minutes of processor time for the training steps, the schedule "
            "compressed to end by then"
        )
    elif options.max_minutes is not None:
        budget = f"{options.max_minutes:g} minutes by the clock, validation included"
    elif options.epochs is not None:
        budget = f"{options.epochs} epochs"
    return [
        f"Data: {options.studies.resolve().name}; trained on {cases} cases, judged on {held_out} that none of "
        "them saw, at the CT's own voxels.",
        f"Recipe: {', '.join(Path(name).name for name in options.recipe)}, the same for all: crops, "
        "augmentation, loss, optimiser, averaging; each network at its usual width.",
        f"Budget of each run: {budget}. Device: {options.device}, {options.jobs} at a time.",
    ]


def _chosen(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    every = find_labelled_cases(options.studies)
    if options.hold_out:
        named = set(options.hold_out)
        cases = [case for case in every if case.image_id not in named]
        held_out = [case for case in every if case.image_id in named]
    else:
        # What judges the server's models is not learned from here either.
        cases, held_out = split(every, evaluation_ids=judges_of(options.studies))
    missing = sorted(set(options.hold_out) - {case.image_id for case in held_out})
    if options.hold_out and missing:
        raise ConfigError(f"--hold-out: no labelled case is called {', '.join(missing)}")
    return cases[: options.cases], held_out


if __name__ == "__main__":
    sys.exit(main())
