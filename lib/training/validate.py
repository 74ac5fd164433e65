"""Validation of a model on whole cases, each on the grid of its scan, as in clinical use."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from lib.errors import CASE_ERRORS, case_failure
from lib.evaluation.metrics import organ_dice
from lib.imaging.scans import read_ct
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.organs.label_files import read_organ_label
from lib.training.case_scores import CaseScores, ModelScores
from lib.training.cases import Case

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Validation:
    """DSC of every contoured organ.

    Attributes:
        per_case: Image id -> organ -> DSC.
    """

    per_case: Mapping[str, Mapping[str, float]]

    @property
    def organ_means(self) -> dict[str, float]:
        """Organ -> mean DSC over the cases in which it is contoured."""
        organs = sorted({organ for dice in self.per_case.values() for organ in dice})
        return {
            organ: float(np.mean([dice[organ] for dice in self.per_case.values() if organ in dice]))
            for organ in organs
        }

    @property
    def mean(self) -> float | None:
        """Mean of `organ_means` over organs; None if no organ is contoured."""
        means = self.organ_means
        return sum(means.values()) / len(means) if means else None


def validate(
    model: Model,
    cases: Sequence[Case],
    *,
    device: str,
    on_contours: Callable[[CtVolume, LabelVolume], None] | None = None,
    before_each: Callable[[], object] | None = None,
    scores: CaseScores | None = None,
    is_decided: Callable[[Mapping[str, Mapping[str, float]]], bool] | None = None,
) -> Validation:
    """Return the agreement of `model` with the labels; a case that cannot be read is left out.

    Args:
        model: The model to validate.
        cases: Scans and reference labels.
        device: Device that the network runs on.
        on_contours: Called with the contours on the first case.
        before_each: Called before each case is contoured.
        scores: Stored scores: what is stored is not computed again, and what is computed is stored.
        is_decided: Called after each case with the DSC so far; True ends the validation.
    """
    per_case: dict[str, dict[str, float]] = {}
    known = scores.of(model) if scores is not None else None
    for case in cases:
        if per_case and is_decided is not None and is_decided(per_case):
            break
        stored = _stored(known, case)
        if stored is not None and not (on_contours and not per_case):
            per_case[case.image_id] = stored
            continue
        try:
            ct = read_ct(case.image, image_id=case.image_id)
            label = read_organ_label(
                case.label, image_id=case.image_id, image_grid=ct.grid, labels=model.recipe.labels
            )
        except CASE_ERRORS as error:
            logger.warning("left out of the validation: %s", case_failure(error, case.image_id))
            continue
        if before_each:
            before_each()
        result = contour(ct, model, device=device)
        if on_contours and not per_case:
            on_contours(ct, result.label)
        per_case[case.image_id] = organ_dice(label, result.label.array, model.recipe.labels)
        if known is not None:
            with suppress(OSError):  # without the stored score it is computed again next time
                known.put(case, per_case[case.image_id])
    return Validation(per_case)


def _stored(known: ModelScores | None, case: Case) -> dict[str, float] | None:
    if known is None:
        return None
    try:
        return known.get(case)
    except OSError:  # the case cannot be read, which the validation reports
        return None
