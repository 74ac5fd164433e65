"""What a strategy may look at: the images that can be handed out, and what is known of each.

A *score* needs no reference (the expert's contour is what the annotator is asked for). Every function of
`lib.activelearning.selection` takes a `Pool` and returns a `Choice`; neither a server nor a database is
needed for that, so that the simulation and the server choose by the same code.
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
    """Size and place of one organ, drawn by a person or by a model.

    Attributes:
        volume_ml: Of all pieces.
        centroid_mm: Of all voxels, along axes that run to the patient's right, front and head. Scans have no
            common origin: only differences between organs of one scan mean anything.
        pieces: Connected pieces of at least a tenth of the organ's volume.
    """

    volume_ml: float
    centroid_mm: tuple[float, float, float]
    pieces: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganScore:
    """What one model says of one organ in one image.

    Attributes:
        entropy: Mean normalised entropy over the voxels predicted as this organ, 0 to 1; None where none is.
        shape: Of the prediction before pieces are removed; None where nothing is predicted.
        volume_cv: Variation of the volume over several samples; None until computed.
        pairwise_dice: Mean Dice of each two samples; None until computed, or where no sample has the organ.
    """

    entropy: float | None
    shape: OrganShape | None
    volume_cv: float | None = None
    pairwise_dice: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """What one model says of one image.

    Attributes:
        image_id: Of the image.
        model_version: Of the model; may be older than the one that serves.
        entropy: Mean normalised entropy over the body, 0 to 1.
        foreground: Share of the body's voxels that are predicted as an organ.
        organs: TG-263 name -> what is known of it; every organ of the model's recipe.
        features: The encoder's mean activation per channel, float32.
        has_samples: Whether `volume_cv` and `pairwise_dice` were computed.
    """

    image_id: str
    model_version: str
    entropy: float
    foreground: float
    organs: Mapping[str, OrganScore]
    features: FloatArray
    has_samples: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Everything that a choice rests on.

    Attributes:
        candidates: Images that may be handed out now.
        taken: Images that are labelled, or that somebody is contouring: a choice should differ from them.
        scores: Image id -> what the served model, or an earlier one, said of it; of `taken` images too.
        shapes: Image id -> organ -> shape of the contours that people drew.
        appearance: Image id -> features of the image alone, float32, for the time before the first model.
        seed: Decides ties, and every random draw.
    """

    candidates: Sequence[str]
    taken: Sequence[str] = ()
    scores: Mapping[str, ImageScore] = field(default_factory=dict)
    shapes: Mapping[str, Mapping[str, OrganShape]] = field(default_factory=dict)
    appearance: Mapping[str, FloatArray] = field(default_factory=dict)
    seed: int = 0

    def generator(self) -> np.random.Generator:
        """Return fresh random numbers of this pool's seed."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The image to contour next, and why this one.

    Attributes:
        image_id: One of the candidates.
        rank: Its place among the candidates that could be ranked, 1 the best; None where nothing ranks them.
        of: How many candidates could be ranked.
        score: Of this image, in the strategy's own terms; None where it has none.
        organs: TG-263 names of the organs that drove the choice, the strongest first; may be empty.
        why: One sentence for the annotator.
    """

    image_id: str
    of: int
    why: str
    rank: int | None = None
    score: float | None = None
    organs: tuple[str, ...] = ()
