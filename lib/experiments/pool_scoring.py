"""Prepared cases of a simulation, their scores by a round's model, and the selection of a batch."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lib.activelearning import image_scores
from lib.activelearning.pool import Choice, Pool, ScoreKind
from lib.activelearning.selection.catalogue import Method
from lib.errors import ConfigError, LabelError
from lib.imaging.geometry import Grid
from lib.imaging.scans import read_ct
from lib.imaging.volumes import LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.inference.resampling import ModelGrid
from lib.models.registry import Model
from lib.organs.label_files import read_organ_label
from lib.storage.atomic_files import replacing, write_json
from lib.training.cases import Case, prepare_cases

FILE = "scores.json"
PoolScores = dict[str, dict[str, dict[str, Any]]]
"""Kind of score -> image id -> values, as `lib.activelearning.image_scores` computes them."""


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """A case in the form that scoring and testing use."""

    image_id: str
    prepared: Prepared
    """The CT as prepared for the network."""
    label: LabelVolume
    """The reference, on the CT's own grid."""


class PreparedVolumes:
    """Cases of a simulation, prepared once for one recipe and stored on disk; nothing is kept in memory.

    Args:
        cases: Image id -> case.
        digests: Image id -> digest of the case's files (`lib.training.cases.digest_of`).
        pipeline: Preprocessing of the recipe.
        cache_dir: Folder of the prepared files, shared with the trainings.
    """

    def __init__(
        self,
        cases: Mapping[str, Case],
        digests: Mapping[str, str],
        pipeline: Pipeline,
        cache_dir: Path,
    ) -> None:
        self.cases = cases
        self._digests = digests
        self._pipeline = pipeline
        self._cache_dir = cache_dir

    def prepare(self, image_id: str) -> None:
        """Prepare a case for training, scoring and testing, unless that is done.

        Raises:
            TrainingError: If it cannot be trained on.
        """
        case, file = self.cases[image_id], self._file(image_id)
        if file.exists():
            return
        prepare_cases([case], self._pipeline, self._cache_dir)
        ct = read_ct(case.image, image_id=image_id)
        label = read_organ_label(
            case.label, image_id=image_id, image_grid=ct.grid, labels=self._pipeline.recipe.labels
        )
        prepared = self._pipeline.prepare(ct)
        grid = prepared.frame.grid
        box = [(side.start, side.stop) for side in prepared.box]
        with replacing(file) as beside:
            np.savez(
                beside,
                hu=prepared.hu,
                label=label,
                box=box,
                shape_vox=grid.shape_vox,
                rows_ras=grid.rows_ras,
            )

    def read(self, image_id: str) -> PreparedCase:
        """Return a prepared case.

        Raises:
            LabelError: If its file is missing or damaged.
        """
        file, recipe = self._file(image_id), self._pipeline.recipe
        try:
            with np.load(file) as stored:
                x, y, z = stored["shape_vox"].tolist()
                grid = Grid((x, y, z), tuple(tuple(row) for row in stored["rows_ras"].tolist()))
                box_x, box_y, box_z = (slice(start, stop) for start, stop in stored["box"].tolist())
                prepared = Prepared(stored["hu"], ModelGrid.of(grid, recipe), (box_x, box_y, box_z))
                label = LabelVolume(stored["label"], grid, recipe.labels)
        except (OSError, ValueError, LookupError, BadZipFile) as error:
            raise LabelError(
                f"{image_id}: its prepared file cannot be read ({error}); remove {file}, and it is created "
                "again"
            ) from error
        return PreparedCase(image_id, prepared, label)

    def _file(self, image_id: str) -> Path:
        digest = self._pipeline.recipe.preparation_digest()
        return self._cache_dir / f"{self._digests[image_id]}-{digest}" / "simulation.npz"


def images_to_score(
    kinds: Collection[ScoreKind], *, pool: Collection[str], labelled: Collection[str]
) -> dict[ScoreKind, Collection[str]]:
    """Return the images for which each kind of score is needed.

    Contour shapes exist for labelled images only; repeated predictions are needed for unlabelled images
    only.
    """
    images = {
        ScoreKind.APPEARANCE: pool,
        ScoreKind.PREDICTION: pool,
        ScoreKind.SAMPLES: sorted(set(pool) - set(labelled)),
        ScoreKind.LABEL_SHAPES: labelled,
    }
    return {kind: images[kind] for kind in ScoreKind if kind in kinds}


def score_pool(
    volumes: PreparedVolumes,
    images: Mapping[ScoreKind, Collection[str]],
    model: Model | None,
    *,
    device: str,
    earlier_scores: Mapping[str, Mapping[str, dict[str, Any]]],
) -> PoolScores:
    """Return the scores of `images`, computed only where `earlier_scores` does not contain them.

    Args:
        volumes: The prepared cases.
        images: Kind of score -> image ids.
        model: The round's model; None if no kind needs one.
        device: Device of the network.
        earlier_scores: Scores by the same model.
    """
    compute: dict[ScoreKind, Callable[[PreparedCase], dict[str, Any]]] = {
        ScoreKind.APPEARANCE: lambda case: image_scores.appearance_features(case.prepared),
        ScoreKind.LABEL_SHAPES: lambda case: image_scores.label_shapes(case.label),
    }
    if model is not None:
        compute[ScoreKind.PREDICTION] = lambda case: image_scores.prediction_scores(
            case.prepared, model, device=device
        )
        compute[ScoreKind.SAMPLES] = lambda case: image_scores.sample_scores(
            case.prepared, model, device=device
        )
    scores: PoolScores = {kind.value: {} for kind in images}
    for image_id in sorted({image_id for ids in images.values() for image_id in ids}):
        case: PreparedCase | None = None
        for kind, ids in images.items():
            if image_id not in ids:
                continue
            score = earlier_scores.get(kind.value, {}).get(image_id)
            if score is None:
                case = case or volumes.read(image_id)
                score = compute[kind](case)
            scores[kind.value][image_id] = score
    return scores


def build_pool(
    scores: Mapping[str, Mapping[str, dict[str, Any]]],
    *,
    pool: Collection[str],
    labelled: Sequence[str],
    model_version: str,
) -> Pool:
    """Return the input of a strategy: candidates, labelled images and their scores."""
    predictions = {
        image_id: image_scores.to_image_score(image_id, model_version, prediction)
        for image_id, prediction in scores.get(ScoreKind.PREDICTION.value, {}).items()
    }
    for image_id, samples in scores.get(ScoreKind.SAMPLES.value, {}).items():
        if image_id in predictions:
            predictions[image_id] = image_scores.with_samples(predictions[image_id], samples)
    return Pool(
        candidates=sorted(set(pool) - set(labelled)),
        taken=tuple(labelled),
        scores=predictions,
        shapes={
            image_id: image_scores.to_organ_shapes(shapes)
            for image_id, shapes in scores.get(ScoreKind.LABEL_SHAPES.value, {}).items()
        },
        appearance={
            image_id: image_scores.to_features(appearance)
            for image_id, appearance in scores.get(ScoreKind.APPEARANCE.value, {}).items()
        },
    )


def select_batch(
    strategy: Method, pool: Pool, count: int, *, seed_of: Callable[[int], int]
) -> list[Choice]:
    """Return `count` successive choices; earlier choices count as taken, but their labels are not used.

    Args:
        strategy: The query strategy.
        pool: Its input, apart from the seed.
        count: Number of choices.
        seed_of: Number of the choice, from 0 -> seed.

    Raises:
        ConfigError: If the strategy chooses no candidate.
    """
    choices: list[Choice] = []
    for number in range(count):
        names = [choice.image_id for choice in choices]
        rest = [image_id for image_id in pool.candidates if image_id not in names]
        request = replace(pool, candidates=rest, taken=(*pool.taken, *names), seed=seed_of(number))
        choice = strategy.choose(request)
        if choice is None or choice.image_id not in rest:
            raise ConfigError(
                f"strategy {strategy.name!r}, choice {number + 1} of {count}: chose "
                f"{'nothing' if choice is None else repr(choice.image_id)}, expected one of {len(rest)} "
                "candidates"
            )
        choices.append(choice)
    return choices


def write_scores(folder: Path, scores: PoolScores) -> None:
    """Write scores into the folder of the model that computed them."""
    write_json(folder / FILE, scores)


def read_scores(folder: Path) -> PoolScores:
    """Return the scores stored with a model; empty if there are none or they are damaged."""
    try:
        scores = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return scores if isinstance(scores, dict) else {}
