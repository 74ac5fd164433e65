"""Input and output of the query strategies, and functions that all of them use to rank and draw candidates.

A *score* is computed without a reference label: that label is what the annotator will draw. Every strategy in
`lib.activelearning.selection` takes a `Pool` and returns a `Choice`. It needs neither a server nor a
database, so the simulation and the server use the same code.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lib.imaging.quantities import FloatArray

LEAD_ORGANS = 3
"""Largest number of organs that are named as the reason for a choice."""
NO_SCORES = "no scores yet: drawn at random"


class ScoreKind(str, Enum):
    """Kinds of computed values, cheapest first. The values are stored in the database."""

    APPEARANCE = "appearance"
    """Features of the image alone; needs no model."""
    PREDICTION = "prediction"
    """Entropies, shapes and features of one pass of the network."""
    SAMPLES = "samples"
    """Differences between several passes of the network."""
    LABEL_SHAPES = "drawn"
    """Organ shapes of an annotator's label; `model_version` is the label's SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganShape:
    """Size and position of one organ, contoured by an annotator or by a model."""

    volume_ml: float
    """Volume of all pieces."""
    centroid_mm: tuple[float, float, float]
    """Centroid of all voxels, along axes that run to the patient's right, front and head. Scans have no common
    origin: only differences between organs of one scan are meaningful."""
    pieces: int = 1
    """Number of connected pieces of at least a tenth of the organ's volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganScore:
    """Scores of one organ in one image, by one model."""

    entropy: float | None
    """Mean normalised entropy over the voxels predicted as this organ, 0 to 1; None if there are none."""
    shape: OrganShape | None
    """Shape of the prediction before small pieces are removed; None if nothing is predicted."""
    volume_cv: float | None = None
    """Coefficient of variation of the volume over several samples; None until computed."""
    pairwise_dice: float | None = None
    """Mean pairwise Dice of the samples; None until computed, or if no sample has the organ."""


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """Scores of one image, by one model."""

    image_id: str
    """The image."""
    model_version: str
    """The model, which may be older than the active model."""
    entropy: float
    """Mean normalised entropy over the body, 0 to 1."""
    foreground: float
    """Share of the body's voxels that are predicted as an organ."""
    organs: Mapping[str, OrganScore]
    """TG-263 name -> scores; every organ of the model's recipe."""
    features: FloatArray
    """The encoder's mean activation per channel, float32."""
    has_samples: bool = False
    """Whether `volume_cv` and `pairwise_dice` were computed."""

    @cached_property
    def disagreement(self) -> float | None:
        """Mean of one minus `pairwise_dice` over the organs; None if no sample has an organ."""
        gaps = [1.0 - o.pairwise_dice for o in self.organs.values() if o.pairwise_dice is not None]
        return math.fsum(gaps) / len(gaps) if self.has_samples and gaps else None

    @cached_property
    def variation(self) -> float:
        """Mean of `volume_cv` over the organs; 0 if it was not computed."""
        values = [o.volume_cv for o in self.organs.values() if o.volume_cv is not None]
        return math.fsum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Everything that a choice is based on."""

    candidates: Sequence[str]
    """Images that may be assigned now."""
    taken: Sequence[str] = ()
    """Images that are labelled or being contoured; a choice should differ from them."""
    scores: Mapping[str, ImageScore] = field(default_factory=dict)
    """Image id -> score by the active model, or an earlier one; also for `taken` images."""
    shapes: Mapping[str, Mapping[str, OrganShape]] = field(default_factory=dict)
    """Image id -> organ -> shape in the annotator's label."""
    appearance: Mapping[str, FloatArray] = field(default_factory=dict)
    """Image id -> features of the image alone, float32, for use before the first model."""
    seed: int = 0
    """Seed of tie breaks and random draws."""

    def generator(self) -> np.random.Generator:
        """Return a new random generator with this pool's seed."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The image to contour next, and the reason."""

    image_id: str
    """One of the candidates."""
    ranked_candidates: Annotated[int, Field(alias="of")]
    """Number of candidates that could be ranked; `of` in JSON."""
    why: str
    """One sentence for the annotator."""
    rank: int | None = None
    """Rank among the candidates that could be ranked, 1 is the best; None if they are not ranked."""
    score: float | None = None
    """Score of this image on the strategy's own scale; None if it has none."""
    organs: tuple[str, ...] = ()
    """TG-263 names of the organs that caused the choice, the strongest first; may be empty."""

    def as_dict(self) -> dict[str, Any]:
        """Return the choice as in JSON."""
        names = {"ranked_candidates": "of"}
        return {
            names.get(name, name): list(value) if name == "organs" else value
            for name, value in asdict(self).items()
        }


def sorted_candidates(pool: Pool) -> list[str]:
    """Return the candidates, each once, sorted by name."""
    # In their order, as the server's candidates are sorted already: sorting them again is fast.
    return sorted(dict.fromkeys(pool.candidates))


def finite_scores(
    pool: Pool, value: Callable[[ImageScore], float | None]
) -> tuple[list[str], FloatArray]:
    """Return the candidates with a finite `value`, sorted by name, and these values `(N,)`.

    A value that is not finite comes from a broken model, and must not be ranked first for ever.
    """
    finite = []
    for image_id in sorted_candidates(pool):
        score = pool.scores.get(image_id)
        number = value(score) if score is not None else None
        if number is not None and math.isfinite(number):
            finite.append((image_id, number))
    return [image_id for image_id, _ in finite], np.array([number for _, number in finite], float)


def index_of_best(generator: np.random.Generator, *keys: FloatArray) -> int:
    """Return the index of the largest value in the first of `keys`, each `(N,)`.

    Ties are broken by the next key, and in the end at random.
    """
    tied = np.arange(len(keys[0]))
    for key in keys:
        tied = tied[key[tied] == key[tied].max()]
    return int(generator.choice(tied))


def at_random(pool: Pool, why: str) -> Choice | None:
    """Return a uniformly random candidate; None if there is none."""
    candidates = sorted_candidates(pool)
    if not candidates:
        return None
    image_id = candidates[int(pool.generator().integers(len(candidates)))]
    return Choice(image_id=image_id, ranked_candidates=0, why=why)


def shuffled_organs(scores: Sequence[ImageScore], generator: np.random.Generator) -> list[str]:
    """Return every organ of these scores once, in random order."""
    organs = sorted(set[str]().union(*(score.organs for score in scores)))
    return [organs[k] for k in generator.permutation(len(organs))]


def leading_organs(
    organs: Mapping[str, OrganScore], value: Callable[[OrganScore], float | None]
) -> tuple[str, ...]:
    """Return the organs with the largest values, largest first; organs without a value are left out."""
    values = {name: value(organ) for name, organ in organs.items()}
    present = {name: number for name, number in values.items() if number is not None}
    return tuple(sorted(present, key=lambda name: (-present[name], name))[:LEAD_ORGANS])


def join_names(names: Sequence[str]) -> str:
    """Return names as in a sentence: `A, B and C`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
