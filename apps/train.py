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
from lib.training.run import Progress, RunOptions, train
from lib.training.split import split


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(
        prog="python -m apps.train", description=__doc__.splitlines()[0]
    )
    add = flags.add_argument
    add("--studies", type=Path, required=True, help="a studies folder, or one folder per case")
    add("--output", type=Path, required=True, help="where the run's checkpoint and model go")
    add("--recipe", default="openkbp", help="name of a recipe, or a YAML file")
    add("--cases", type=int, help="train on the first N cases that are not held out")
    add("--hold-out", nargs="*", default=[], metavar="ID", help="never train on these cases")
    add("--max-minutes", type=float, help="compress the schedule to end by then")
    add("--epochs", type=int, help="in place of the recipe's")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--initial", type=Path, help="weights (.safetensors) to start from")
    add("--fresh", action="store_true", help="do not go on from the output's checkpoint")
    add("--publish", type=Path, metavar="MODEL_DIR", help="serve the result if it is not worse")
    return flags


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
    recipe = find_recipe(options.recipe)
    cases, held_out = _chosen(options)
    print(f"recipe {recipe.name}: {len(cases)} cases to train on, {len(held_out)} held out")
    with tqdm(total=options.epochs or recipe.schedule.epochs, unit="epoch") as bar:

        def show(progress: Progress) -> None:
            bar.total, bar.n = progress.total_epochs, progress.epoch
            dsc = "" if progress.metric is None else f", DSC {progress.metric:.3f}"
            bar.set_postfix_str(
                f"loss {progress.loss:.3f}{dsc}, {progress.eta_s / 60:.1f} min left"
            )
            bar.refresh()

        trained = train(
            recipe,
            cases,
            held_out,
            run_dir=options.output,
            cache_dir=options.output / "cache",
            options=RunOptions(
                seed=options.seed,
                device=options.device,
                max_minutes=options.max_minutes,
                epochs=options.epochs,
                resume=not options.fresh,
            ),
            initial=load_model(options.initial) if options.initial else None,
            on_progress=show,
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
