"""The CT and the probabilities of the last runs, kept in memory so that a click is answered at once."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lib.imaging.quantities import FloatArray, LabelArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.preprocessing import Prepared
from lib.inference.resampling import Box, ModelGrid, relative_box

KEPT_BYTES = 640 * 2**20
"""Memory of all kept runs: four CTs of 512 x 512 x 120 voxels with the starter model."""
_POSSIBLE = 0.002
"""Probability of all organs together below which a voxel is not kept: that of a byte's last digit."""


@dataclass(frozen=True, slots=True)
class QuantisedProbabilities:
    """Probabilities of the organs over the part of a prepared CT in which any organ is possible.

    Attributes:
        values: `(K - 1, X, Y, Z)`, 0 to 255; without the background.
        box: Position on the network's grid.
        frame: Relation between the CT's grid and the network's.
    """

    values: npt.NDArray[np.uint8]
    box: Box
    frame: ModelGrid

    @classmethod
    def of(cls, prepared: Prepared, softmax: Tensor) -> "QuantisedProbabilities":
        """Return the probabilities of a run; `softmax` is `(K, X, Y, Z)` over `prepared.hu`."""
        is_possible = (softmax[0] < 1 - _POSSIBLE).numpy()
        inner = []
        for axis in range(3):
            inside = np.flatnonzero(is_possible.any(axis=tuple(a for a in range(3) if a != axis)))
            inner.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
        x, y, z = inner
        part = softmax[1:, x, y, z]
        values = np.empty(part.shape, np.uint8)
        for target, organ in zip(values, part, strict=True):
            np.rint(organ.float().numpy() * 255, out=target, casting="unsafe")
        x, y, z = (
            slice(o.start + i.start, o.start + i.stop)
            for i, o in zip(inner, prepared.box, strict=True)
        )
        return cls(values, (x, y, z), prepared.frame)

    def certainty(self, value: int, box: Box) -> FloatArray:
        """Return the probability of an organ against its strongest rival, 0 to 1, in a box of the CT's voxels.

        Above 0.5 the organ is the most probable one.
        """
        ras_box = self.frame.ras_box_of(box)
        model_box = self.frame.model_box(ras_box)
        organs = self._values_in(model_box).astype(np.float32) / 255.0
        background = np.maximum(1.0 - organs.sum(axis=0), 0.0)
        rival = np.maximum(np.delete(organs, value - 1, axis=0).max(axis=0, initial=0), background)
        share = organs[value - 1] / (organs[value - 1] + rival)
        on_ct = self.frame.resample_back(share, model_box, ras_box)
        return np.ascontiguousarray(self.frame.turn_back(on_ct), dtype=np.float32)

    def _values_in(self, model_box: Box) -> npt.NDArray[np.uint8]:
        """Return the kept values in a box; 0 where nothing was kept."""
        result = np.zeros((len(self.values), *(s.stop - s.start for s in model_box)), np.uint8)
        x, y, z = (
            slice(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(model_box, self.box, strict=True)
        )
        if all(side.start < side.stop for side in (x, y, z)):
            to, source = relative_box((x, y, z), model_box), relative_box((x, y, z), self.box)
            result[:, *to] = self.values[:, *source]
        return result


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run of a model on a CT, or on a part of it.

    Attributes:
        ct: The whole CT.
        region: The part, in voxels of `ct`.
        probabilities: Of the part.
        label: The contours in the part: `(X, Y, Z)` of `region`.
    """

    ct: CtVolume
    region: Box
    probabilities: QuantisedProbabilities
    label: LabelVolume

    @property
    def is_whole(self) -> bool:
        """Whether the run covers the whole CT."""
        return bool(self.label.array.shape == self.ct.array_hu.shape)

    def covers(self, box: Box) -> bool:
        """Return whether `box`, in voxels of the CT, lies in the part."""
        return all(
            outer.start <= inner.start and inner.stop <= outer.stop
            for inner, outer in zip(box, self.region, strict=True)
        )

    def label_in(self, box: Box) -> LabelArray:
        """Return the contours in a box that the run covers."""
        return self.label.array[relative_box(box, self.region)]

    def certainty(self, value: int, box: Box) -> FloatArray:
        """Return `QuantisedProbabilities.certainty` in a box that the run covers."""
        return self.probabilities.certainty(value, relative_box(box, self.region))

    @property
    def size_bytes(self) -> int:
        """Memory of the run."""
        arrays = (self.ct.array_hu, self.probabilities.values, self.label.array)
        return sum(array.nbytes for array in arrays)


class KeptRuns:
    """The runs used last; a run that does not fit is not kept, and is computed again when it is needed.

    Args:
        limit_bytes: Memory of all of them.
    """

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._mutex = threading.Lock()
        self._runs: OrderedDict[Hashable, KeptRun] = OrderedDict()

    def get(self, key: Hashable) -> KeptRun | None:
        """Return the run with a key, which then counts as used last; None if it is not kept."""
        with self._mutex:
            run = self._runs.get(key)
            if run is not None:
                self._runs.move_to_end(key)
            return run

    def put(self, key: Hashable, run: KeptRun) -> None:
        """Keep a run, and drop those used longest ago until all fit; a whole run is not replaced by a part."""
        with self._mutex:
            known = self._runs.get(key)
            if known is not None and known.is_whole and not run.is_whole:
                return
            self._runs.pop(key, None)
            self._runs[key] = run
            while sum(kept.size_bytes for kept in self._runs.values()) > self._limit_bytes:
                self._runs.popitem(last=False)
