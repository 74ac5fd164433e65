"""Train a network on labelled cases, or several and compare them.

python -m apps.train --studies DIR --recipe openkbp --output runs/first
torchrun --nproc-per-node 2 -m apps.train --studies DIR --recipe pddca --output runs/second
python -m apps.train --studies DIR --all --budget-cpu-minutes 15 --output runs/all
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from typer import Option

from apps.support.console import program
from apps.support.options import STARTER_DIR, Device, LabelledStudies, device_name, one_of
from lib.recipes.schema import NETWORK_NAMES


def train(
    studies: LabelledStudies,
    output: Path = Option(..., help="Folder of the run: checkpoint and model."),
    cases: int | None = Option(None, help="Train on the first N cases that are not held out."),
    hold_out: list[str] | None = Option(
        None, metavar="ID", help="Cases that are never trained on; default: a fixed split."
    ),
    recipe: list[str] | None = Option(
        None, help="Name of a recipe, or a YAML file.", show_default="openkbp"
    ),
    network: list[str] | None = Option(
        None,
        help=f"Network to use instead of the recipe's, at its usual width: {', '.join(NETWORK_NAMES)}.",
        metavar="NAME",
        callback=one_of(lambda: NETWORK_NAMES),
    ),
    seed: list[int] | None = Option(None, metavar="N", show_default="0"),
    device: Device = "auto",
    precision: Literal["auto", "float32"] = Option("auto", help="auto: bfloat16 where it is fast."),
    initial: Path | None = Option(None, help="Weights (.safetensors) to start the training from."),
    cache: Path | None = Option(
        None, help="Folder of the prepared cases.", show_default="OUTPUT/cache"
    ),
    fresh: bool = Option(False, "--fresh", help="Ignore the checkpoint in the output folder."),
    publish: Path | None = Option(
        None,
        metavar="MODEL_DIR",
        help="Model folder to add the model to; it becomes the active model if the promotion rule allows it.",
    ),
    starter_dir: Path = Option(
        STARTER_DIR,
        help="Folder of the starter weights, which --publish compares with before a first promotion.",
        show_default="model/starter",
    ),
    epochs: int | None = Option(None, help="Number of epochs instead of the recipe's."),
    max_minutes: float | None = Option(
        None, help="Wall-clock limit; the schedule is compressed to fit."
    ),
    budget_cpu_minutes: float | None = Option(
        None,
        help="CPU-minute budget of the training steps, of all threads and without validation; the schedule "
        "is compressed to fit.",
    ),
    tensorboard: bool = Option(
        True, help="Write loss, learning rate and DSC for TensorBoard into OUTPUT/tensorboard."
    ),
    pictures: bool = Option(
        False,
        "--pictures",
        help="Also show the contours of the first held-out case in TensorBoard.",
    ),
    mlflow: str | None = Option(
        None, metavar="URI", help="Log to MLflow: sqlite:///FILE, a server or a database."
    ),
    all_: bool = Option(False, "--all", help="Train every network."),
    jobs: int = Option(1, help="Number of parallel trainings; they share the cores."),
) -> int:
    """Train a network on labelled cases, or several and compare them.

    Several values of --recipe, --network or --seed make a run of each combination, in a folder of its own below
    --output. comparison.html, .md, .csv and .png compare all runs with the first one on the held-out cases.
    """
    options = SimpleNamespace(**locals())
    from apps.support.training import run_training

    options.device = device_name(device)
    options.recipe, options.seed = recipe or ["openkbp"], seed or [0]
    return run_training(options)


main = program(train, "train")

if __name__ == "__main__":
    sys.exit(main())
