"""The process that computes scores and edit costs: orders come line by line, and so go the answers.

    python -m lib.jobs.child_process --parent PID lib.activelearning.scoring_process --turns FOLDER --device D

It knows no database and decides nothing: the server says what to compute next, so that a new model is looked
at from the next order on, and a process that dies takes one answer with it at most.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lib.activelearning import image_scores
from lib.activelearning.edit_cost_curve import measure
from lib.activelearning.score_records import Kind
from lib.activelearning.scoring_jobs import EDIT_COST
from lib.errors import OrganNetError, ScanError
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.jobs.low_priority import be_modest, fewer_threads
from lib.jobs.serving_priority import ServingPriority
from lib.models.registry import Model, load_model
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import recipe_from_dict

logger = logging.getLogger(__name__)

MODELS_KEPT = 2
"""The served one, and the one before it, which edit costs are measured against."""


class ScoringProcess:
    """What one process needs to compute; the last model and the last scan stay at hand.

    Args:
        recipe: The server's: how a scan is prepared where there is no model.
        device: Where networks run.
        between: Called before each window.
    """

    def __init__(self, recipe: Recipe, *, device: str, between: Callable[[], object]) -> None:
        self._recipe = recipe
        self._device = device
        self._between = between
        self._models: dict[Path, Model] = {}
        self._scan: tuple[tuple[Path, Recipe], Prepared] | None = None

    def compute(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an order asks for: `kind`, `image_id`, and the files `image`, `model` and `label`.

        Raises:
            OrganNetError: If a file cannot be read.
        """
        image, image_id = Path(order["image"]), order["image_id"]
        self._between()
        if order["kind"] == EDIT_COST:
            return measure(
                image,
                Path(order["label"]),
                self._model(Path(order["model"])),
                image_id=image_id,
                labels=self._recipe.labels,
                device=self._device,
            ).as_dict()
        kind = Kind(order["kind"])
        if kind is Kind.DRAWN:
            array, grid = read_label(Path(order["label"]), image_id=image_id, image_grid=None)
            return image_scores.drawn(LabelVolume(array, grid, self._recipe.labels))
        if kind is Kind.APPEARANCE:
            return image_scores.appearance(self._prepared(image, image_id, self._recipe))
        model = self._model(Path(order["model"]))
        prepared = self._prepared(image, image_id, model.recipe)
        of_model = image_scores.prediction if kind is Kind.PREDICTION else image_scores.samples
        return of_model(prepared, model, device=self._device, between=self._between)

    def _model(self, path: Path) -> Model:
        if path not in self._models:
            while len(self._models) >= MODELS_KEPT:
                del self._models[next(iter(self._models))]
            self._models[path] = load_model(path, self._device)
        return self._models[path]

    def _prepared(self, image: Path, image_id: str, recipe: Recipe) -> Prepared:
        key = (image, recipe)
        if self._scan is None or self._scan[0] != key:
            self._scan = None
            ct = read_ct(image, image_id=image_id)
            self._scan = (key, Pipeline(recipe).prepare(ct))
        return self._scan[1]


def answer(bench: ScoringProcess, order: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to one order: `found`, or the `trouble` that there was; and `seconds`.

    Of a scan that nobody can contour, for it is none, `found` says `is_unreadable`.
    """
    began = time.monotonic()
    found: Mapping[str, Any] = {}
    trouble = None
    try:
        found = bench.compute(order)
    except ScanError as error:
        found, trouble = {"is_unreadable": True}, str(error)
    except OrganNetError as error:
        trouble = str(error)
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        logger.exception("%s: %s", order["image_id"], order["kind"])
        trouble = f"{type(error).__name__}: {error}"[:500]
    return {"found": found, "trouble": trouble, "seconds": round(time.monotonic() - began, 3)}


def work(bench: ScoringProcess, orders: IO[str], answers: IO[str]) -> None:
    """Answer orders until there are no more."""
    for line in orders:
        json.dump(answer(bench, json.loads(line)), answers)
        answers.write("\n")
        answers.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Answer orders from standard input; return the exit code."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--turns", type=Path, required=True)
    flags.add_argument("--recipe", required=True)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--gpu-share", type=float, default=0.5)
    given = flags.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    answers = sys.stdout
    # What a library prints must not come between the answers.
    sys.stdout = sys.stderr
    be_modest(threads=fewer_threads(), device=given.device, gpu_share=given.gpu_share)
    recipe = recipe_from_dict(json.loads(given.recipe), source="the server's recipe")
    turns = ServingPriority(given.turns)
    work(ScoringProcess(recipe, device=given.device, between=turns.give_way), sys.stdin, answers)
    return 0


def flags_for(recipe: Recipe, *, turns: Path, device: str, gpu_share: float) -> list[str]:
    """Return the flags that `main` reads."""
    return ["--turns", str(turns), "--recipe", json.dumps(recipe.as_dict()), "--device", device,
            "--gpu-share", str(gpu_share)]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
