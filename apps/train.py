"""Train a network on labelled cases.

python -m apps.train --studies DIR --recipe openkbp --output runs/first
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from lib.errors import OrganNetError
from lib.recipe_files import find_recipe
from lib.registry import Registry, load_model, save_model
from lib.studies import labelled_cases
from lib.training.cases import Case
from lib.training.gate import publish_if_not_worse
from lib.training.run import Progress, RunOptions, Step, Watch, train
from lib.training.split import split


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.train", description=__doc__.splitlines()[0]
    )
    _data_flags(flags.add_argument_group("what is learned from"))
    _run_flags(flags.add_argument_group("how"))
    _output_flags(flags.add_argument_group("what comes of it"))
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
    add("--initial", type=Path, help="weights (.safetensors) to start from")


def _output_flags(flags: argparse._ArgumentGroup) -> None:
    add = flags.add_argument
    add("--output", type=Path, required=True, help="where the run's checkpoint and model go")
    add("--fresh", action="store_true", help="do not go on from the output's checkpoint")
    add("--publish", type=Path, metavar="MODEL_DIR", help="serve the result if it is not worse")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = parser().parse_args(argv)
    try:
        _run(options)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last epoch", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    run_options = _run_options(options)
    recipe = find_recipe(options.recipe)
    cases, held_out = _chosen(options)
    print(f"recipe {recipe.name}: {len(cases)} cases to train on, {len(held_out)} held out")
    with Bar() as bar:
        trained = train(
            recipe,
            cases,
            held_out,
            run_dir=options.output,
            cache_dir=options.output / "cache",
            options=run_options,
            initial=load_model(options.initial) if options.initial else None,
            watch=Watch(on_progress=bar.epoch, on_step=bar.step),
        )
    folder = options.publish or options.output
    version = save_model(folder, trained.weights, recipe, trained.card)
    for organ, value in trained.card["validation"]["organ_dice"].items():
        print(f"  {organ:16} DSC {value:.3f}")
    print(f"model: {folder / version}.safetensors")
    if options.publish:
        published, reason = publish_if_not_worse(
            Registry(options.publish), version, held_out, device=options.device
        )
        print(f"{'published' if published else 'not published'}: {reason}")


def _run_options(options: argparse.Namespace) -> RunOptions:
    return RunOptions(
        seed=options.seed,
        device=options.device,
        max_minutes=options.max_minutes,
        cpu_minutes=options.budget_cpu_minutes,
        epochs=options.epochs,
        resume=not options.fresh,
    )


class Bar:
    """A progress bar that moves with every step, and says how long the run still takes."""

    def __init__(self) -> None:
        layout = "{percentage:3.0f}%|{bar}| step {n_fmt} of {total_fmt}{postfix}"
        self._bar = tqdm(total=1, bar_format=layout)
        self._dsc = ""

    def __enter__(self) -> "Bar":
        """Show it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it as it is."""
        self._bar.close()

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
