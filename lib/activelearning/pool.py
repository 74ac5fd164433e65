"""Input and output of the query strategies: the candidate images with their scores, and the choice.

A *score* needs no reference, because the reference is what the annotator is asked for. Every strategy in
`lib.activelearning.selection` takes a `Pool` and returns a `Choice`. It needs neither a server nor a
database, so the simulation and the server use the same code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from lib.imaging.quantities import FloatArray


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
    """Mean normalised entropy over the voxels predicted as this organ, 0 to 1; None where none is."""
    shape: OrganShape | None
    """Shape of the prediction before small pieces are removed; None if nothing is predicted."""
    volume_cv: float | None = None
    """Coefficient of variation of the volume over several samples; None until computed."""
    pairwise_dice: float | None = None
    """Mean pairwise Dice of the samples; None until computed, or if no sample has the organ."""


@dataclass(frozen=True, slots=True, kw_only=True)
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
    of: int
    """Number of candidates that could be ranked."""
    why: str
    """One sentence for the annotator."""
    rank: int | None = None
    """Rank among the candidates that could be ranked, 1 is the best; None if they are not ranked."""
    score: float | None = None
    """Score of this image on the strategy's own scale; None if it has none."""
    organs: tuple[str, ...] = ()
    """TG-263 names of the organs that caused the choice, the strongest first; may be empty."""
