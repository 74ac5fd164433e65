"""Probabilities of a network that takes clicks, with the clicks of one organ (ADR 32)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lib.backends.interface import Backend
from lib.imaging.quantities import FloatArray
from lib.imaging.volumes import CtVolume
from lib.inference.click_channels import draw_click
from lib.inference.preprocessing import Pipeline, Prepared
from lib.inference.resampling import Box, relative_box
from lib.inference.single_pass import OVERLAP, probabilities
from lib.models.registry import Model
from lib.prompts.kept_runs import QuantisedProbabilities

MAX_DRAWN = 200
"""Largest number of positions of a scribble that are drawn: its Gaussians overlap anyway."""


@dataclass(frozen=True, slots=True)
class ClickGuided:
    """Probabilities with clicks, on a part of a CT.

    Attributes:
        probabilities: Of the part.
        region: The part, in voxels of the CT.
    """

    probabilities: QuantisedProbabilities
    region: Box

    def certainty(self, value: int, box: Box) -> FloatArray:
        """Return `QuantisedProbabilities.certainty` in a box of the part."""
        return self.probabilities.certainty(value, relative_box(box, self.region))


def guided_probabilities(
    ct: CtVolume,
    prompts: Sequence[tuple[npt.NDArray[np.intp], bool]],
    model: Model,
    backend: Backend,
) -> QuantisedProbabilities:
    """Return the probabilities of a network that takes clicks.

    Args:
        ct: The scan, or a part of it.
        prompts: Voxels `(N, 3)` of `ct`, and whether they are to add.
        model: A model whose recipe has clicks.
        backend: Computes its network.
    """
    pipeline = Pipeline(model.recipe)
    prepared = pipeline.prepare(ct)
    softmax = probabilities(
        prepared,
        model,
        pipeline=pipeline,
        overlap=OVERLAP,
        backend=backend,
        is_localised=True,
        clicks=_channels(prompts, prepared, model),
    )
    return QuantisedProbabilities.of(prepared, softmax)


def _channels(
    prompts: Sequence[tuple[npt.NDArray[np.intp], bool]], prepared: Prepared, model: Model
) -> FloatArray:
    """Return the channels `(2, X, Y, Z)` over `prepared.hu`; what lies outside of it is left out."""
    frame = prepared.frame
    channels = np.full((2, *prepared.hu.shape), -1.0, np.float32)
    start = np.array([side.start for side in prepared.box])
    for voxels, is_add in prompts:
        for voxel in voxels[:: -(-len(voxels) // MAX_DRAWN)]:
            x, y, z = (slice(int(index), int(index) + 1) for index in voxel)
            ras = np.array([side.start for side in frame.ras_box_of((x, y, z))])
            position = (ras + 0.5) * frame.spacing_ras_mm / np.array(frame.spacing_model_mm) - 0.5
            index = np.rint(position).astype(int) - start
            if (index >= 0).all() and (index < prepared.hu.shape).all():
                draw_click(
                    channels,
                    index.tolist(),
                    is_add=is_add,
                    spacing_mm=frame.spacing_model_mm,
                    radius_mm=model.recipe.clicks.radius_mm,
                )
    return channels
