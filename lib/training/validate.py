"""How well a model does on whole cases, each on its own grid, as a user would get it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lib.errors import OrganNetError
from lib.evaluation.metrics import organ_dice
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.training.cases import Case

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Validation:
    """DSC of every organ that was contoured.

    Attributes:
        per_case: Image id -> organ -> DSC.
    """

    per_case: Mapping[str, Mapping[str, float]]

    @property
    def organ_means(self) -> dict[str, float]:
        """Organ -> mean DSC over the cases in which it was contoured."""
        organs = sorted({organ for found in self.per_case.values() for organ in found})
        return {
            organ: float(np.mean([f[organ] for f in self.per_case.values() if organ in f]))
            for organ in organs
        }

    @property
    def mean(self) -> float | None:
        """Mean over organs of `organ_means`; None where nothing was contoured."""
        means = self.organ_means
        return sum(means.values()) / len(means) if means else None


def validate(
    model: Model,
    cases: Sequence[Case],
    *,
    device: str,
    on_contours: Callable[[CtVolume, LabelVolume], None] | None = None,
    before_each: Callable[[], object] | None = None,
) -> Validation:
    """Return how well `model` agrees with the cases' labels; a case that cannot be read is left out.

    Args:
        model: What contours.
        cases: Scans and references.
        device: Where the network runs.
        on_contours: Shown what was drawn on the first case.
        before_each: Called before each case is contoured.
    """
    per_case: dict[str, dict[str, float]] = {}
    for case in cases:
        try:
            ct = read_ct(case.image, image_id=case.image_id)
            label, _ = read_label(case.label, image_id=case.image_id, image_grid=ct.grid)
        except OrganNetError as error:
            logger.warning("left out of the validation: %s", error)
            continue
        if before_each:
            before_each()
        found = contour(ct, model, device=device)
        if on_contours and not per_case:
            on_contours(ct, found.label)
        per_case[case.image_id] = organ_dice(label, found.label.array, model.recipe.labels)
    return Validation(per_case)
