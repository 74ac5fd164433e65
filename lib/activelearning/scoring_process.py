"""Worker process that computes scores and edit costs, and prepares submitted cases for training.

    python -m lib.jobs.child_process --parent PID lib.activelearning.scoring_process --state FOLDER --device D

Each request and each answer is one line of JSON. The process reads no database and makes no decisions: the
server chooses each request, so that a new model is used from the next request on. If the process dies, at
most one answer is lost.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

from lib.activelearning import image_scores
from lib.activelearning.pool import ScoreKind
from lib.errors import OrganNetError, ScanError
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.jobs.priority import ServingPriority, background_threads, lower_priority
from lib.models.registry import load_model
from lib.recipes.schema import Recipe
from lib.recipes.yaml_files import recipe_from_dict
from lib.training.cases import CACHE_FOLDER, Case, prepare_cases

logger = logging.getLogger(__name__)

MODELS_KEPT = 2
"""Number of models in memory: the active one, and an earlier one that edit costs are measured against."""


class ScoringProcess:
    """Computes the answers; keeps the last models and the last scan in memory.

    Args:
        recipe: The server's recipe; it prepares the scans of requests without a model.
        cache: Folder of cases that are prepared for a training.
        device: Device of the networks.
        between: Called before each call of a network.
    """

    def __init__(
        self, recipe: Recipe, *, cache: Path, device: str, between: Callable[[], object]
    ) -> None:
        self._recipe = recipe
        self._cache = cache
        self._device = device
        self._between = between
        self._model = lru_cache(MODELS_KEPT)(partial(load_model, device=device))
        self._scan: tuple[tuple[Path, Recipe], Prepared] | None = None

    def compute(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values for a request: `kind`, `image_id`, and the files `image`, `model` and `label`.

        Raises:
            OrganNetError: If a file cannot be read.
        """
        image, image_id = Path(request["image"]), request["image_id"]
        self._between()
        if request["kind"] == image_scores.EDIT_COST:
            return image_scores.measure_edit_cost(
                image,
                Path(request["label"]),
                self._model(Path(request["model"])),
                image_id=image_id,
                labels=self._recipe.labels,
                device=self._device,
            ).as_dict()
        kind = ScoreKind(request["kind"])
        if kind is ScoreKind.LABEL_SHAPES:
            label = Path(request["label"])
            self._prepare_for_training(Case(image_id, image, label))
            array, grid = read_label(label, image_id=image_id, image_grid=None)
            return image_scores.label_shapes(LabelVolume(array, grid, self._recipe.labels))
        if kind is ScoreKind.APPEARANCE:
            return image_scores.appearance_features(self._prepared(image, image_id, self._recipe))
        model = self._model(Path(request["model"]))
        prepared = self._prepared(image, image_id, model.recipe)
        score = (
            image_scores.prediction_scores
            if kind is ScoreKind.PREDICTION
            else image_scores.sample_scores
        )
        return score(prepared, model, device=self._device, between=self._between)

    def _prepare_for_training(self, case: Case) -> None:
        """Prepare a submitted case now, so that the next training need not."""
        try:
            prepare_cases([case], Pipeline(self._recipe), self._cache)
        except (OrganNetError, OSError) as error:
            logger.warning("%s is not prepared for training yet: %s", case.image_id, error)

    def _prepared(self, image: Path, image_id: str, recipe: Recipe) -> Prepared:
        key = (image, recipe)
        if self._scan is None or self._scan[0] != key:
            # Released first: two scans at once need twice the memory.
            self._scan = None
            ct = read_ct(image, image_id=image_id)
            self._scan = (key, Pipeline(recipe).prepare(ct))
        return self._scan[1]


def answer(process: ScoringProcess, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to one request as `lib.jobs.job_runner.JobResult` reads it.

    For a file that is not a readable scan, `values` holds `is_unreadable`.
    """
    began = time.monotonic()
    values: Mapping[str, Any] = {}
    error_message = None
    try:
        values = process.compute(request)
    except ScanError as error:
        values, error_message = {"is_unreadable": True}, str(error)
    except OrganNetError as error:
        error_message = str(error)
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        logger.exception("%s: %s", request["image_id"], request["kind"])
        error_message = f"{type(error).__name__}: {error}"[:500]
    seconds = round(time.monotonic() - began, 3)
    return {"values": values, "error": error_message, "seconds": seconds}


def answer_all(process: ScoringProcess, requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until the input ends."""
    for line in requests:
        json.dump(answer(process, json.loads(line)), answers)
        answers.write("\n")
        answers.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Answer requests from standard input; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-share", type=float, default=0.5)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    answers = sys.stdout
    # Libraries that print must not write between the answers.
    sys.stdout = sys.stderr
    lower_priority(threads=background_threads(), device=options.device, gpu_share=options.gpu_share)
    recipe = recipe_from_dict(json.loads(options.recipe), source="the server's recipe")
    priority = ServingPriority(options.state)
    process = ScoringProcess(
        recipe,
        cache=options.state / CACHE_FOLDER,
        device=options.device,
        between=priority.give_way,
    )
    answer_all(process, sys.stdin, answers)
    return 0


def flags_for(recipe: Recipe, *, state: Path, device: str, gpu_share: float) -> list[str]:
    """Return the command line that `main` reads."""
    return ["--state", str(state), "--recipe", json.dumps(recipe.as_dict()), "--device", device,
            "--gpu-share", str(gpu_share)]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
