"""Train a network on labelled cases.

python -m apps.train --studies DIR --recipe openkbp --output runs/first
torchrun --nproc-per-node 2 -m apps.train --studies DIR --recipe pddca --output runs/second
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lib.errors import OrganNetError
from lib.recipe_files import find_recipe
from lib.recipes import Recipe
from lib.registry import Registry, load_model, save_model
from lib.studies import labelled_cases
from lib.training.cases import Case
from lib.training.distributed import Group, joined
from lib.training.gate import publish_if_not_worse
from lib.training.mlflow_tracker import Mlflow
from lib.training.record import as_yaml
from lib.training.run import Progress, RunOptions, Step, TrainedModel, Watch, train
from lib.training.split import split
from lib.training.tracking import TensorBoard, Tracker


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.train", description=__doc__.splitlines()[0]
    )
    _data_flags(flags.add_argument_group("what is learned from"))
    _run_flags(flags.add_argument_group("how"))
    _output_flags(flags.add_argument_group("what comes of it"))
    _tracking_flags(flags.add_argument_group("curves"))
    return flags


def _data_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--studies", type=Path, required=True, help="a studies folder, or one folder per case")
    add("--cases", type=int, help="train on the first N cases that are not held out")
    add("--hold-out", nargs="*", default=[], metavar="ID", help="never train on these cases")


def _run_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--recipe", default="openkbp", help="name of a recipe, or a YAML file")
    add("--epochs", type=int, help="in place of the recipe's")
    add("--max-minutes", type=float, help="compress the schedule to end by then, by the clock")
    add(
        "--budget-cpu-minutes",
        type=float,
        help="compress the schedule to so much processor time of all threads; validation is not counted",
    )
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--precision", choices=("auto", "float32"), default="auto", help="auto: bfloat16 where fast"
    )
    add("--initial", type=Path, help="weights (.safetensors) to start from")


def _output_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--output", type=Path, required=True, help="where the run's checkpoint and model go")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parser().parse_args(argv)
    try:
        with joined(options.device) as group:
            _run(options, group)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace, group: Group) -> None:
    run_options = _run_options(options, group.device)
    recipe = find_recipe(options.recipe)
    cases, held_out = _chosen(options)
    with Bar() as bar:
        trained = train(
            recipe,
            cases,
            held_out,
            run_dir=options.output,
            cache_dir=options.output / "cache",
            options=run_options,
            initial=load_model(options.initial) if options.initial else None,
            watch=Watch(
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
        seed=options.seed,
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


class Bar:
    """A progress bar that moves with every step, and says how long the run still takes."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._dsc = ""

    def __enter__(self) -> "Bar":
        """Show it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        self._bar.close()

    def start(self, record: Mapping[str, Any]) -> None:
        """Say what the run is."""
        print(as_yaml(record), flush=True)
        layout = "{percentage:3.0f}%|{bar}| step {n_fmt} of {total_fmt}{postfix}"
        self._bar = tqdm(total=1, bar_format=layout)

    def step(self, step: Step) -> None:
        """Move to where the run is."""
        self._bar.total = step.total_steps
        self._bar.set_postfix_str(
            f"epoch {step.epoch}, loss {step.loss:.3f}{self._dsc}, {step.eta_s / 60:.1f} min left",
            refresh=False,
        )
        self._bar.update(step.step - self._bar.n)

    def epoch(self, progress: Progress) -> None:
        """Take in the validation, and draw the bar."""
        self._dsc = "" if progress.metric is None else f", DSC {progress.metric:.3f}"
        self._bar.refresh()


def _chosen(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    every = labelled_cases(options.studies)
    if options.hold_out:
        named = set(options.hold_out)
        cases = [case for case in every if case.image_id not in named]
        held_out = [case for case in every if case.image_id in named]
    else:
        cases, held_out = split(every)
    return cases[: options.cases], held_out


if __name__ == "__main__":
    sys.exit(main())
