"""Cases as scoring and judging need them: prepared once, kept on disk, read again in a moment."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lib.errors import LabelError
from lib.imaging.geometry import Grid
from lib.imaging.scans import read_ct, read_label
from lib.imaging.volumes import LabelVolume
from lib.inference.preprocessing import Pipeline, Prepared
from lib.inference.resampling import Box, ModelGrid
from lib.storage.atomic_files import replacing, write_json
from lib.training.cases import Case, prepare_cases


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """A case that need not be prepared again.

    Attributes:
        image_id: As in `Case`.
        prepared: The CT as the network sees it.
        label: The reference, on the CT's own grid.
    """

    image_id: str
    prepared: Prepared
    label: LabelVolume


class Volumes:
    """The cases of a simulation, prepared for one recipe; nothing is kept in memory.

    Args:
        cases: Image id -> case.
        digests: Image id -> digest of the case's files (`lib.training.cases.digest_of`).
        pipeline: Of the recipe.
        cache_dir: Where they are kept; the same as the trainings'.
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
        """Make a case ready for training, scoring and judging, where it is not.

        Raises:
            TrainingError: If it cannot be trained on.
        """
        case, folder = self.cases[image_id], self._folder(image_id)
        if (folder / "where.json").exists():
            return
        prepare_cases([case], self._pipeline, self._cache_dir)
        ct = read_ct(case.image, image_id=image_id)
        label, _ = read_label(case.label, image_id=image_id, image_grid=ct.grid)
        prepared = self._pipeline.prepare(ct)
        _save(folder / "prepared.npy", prepared.hu)
        _save(folder / "reference.npy", label)
        write_json(folder / "where.json", _where(prepared))

    def read(self, image_id: str) -> PreparedCase:
        """Return a case that was made ready.

        Raises:
            LabelError: If what was kept of it is gone or damaged.
        """
        folder = self._folder(image_id)
        try:
            where = json.loads((folder / "where.json").read_text(encoding="utf-8"))
            rows = tuple((r[0], r[1], r[2], r[3]) for r in where["rows_ras"])
            x, y, z = where["shape_vox"]
            grid = Grid((x, y, z), rows)
            prepared = Prepared(
                np.load(folder / "prepared.npy"),
                ModelGrid.of(grid, self._pipeline.recipe),
                _box(where["box"]),
            )
            label = np.load(folder / "reference.npy")
        except (OSError, ValueError, LookupError) as error:
            raise LabelError(
                f"{image_id}: what was kept of it cannot be read ({error}); "
                f"remove {folder}, and it is made again"
            ) from error
        return PreparedCase(
            image_id, prepared, LabelVolume(label, grid, self._pipeline.recipe.labels)
        )

    def _folder(self, image_id: str) -> Path:
        digest = self._pipeline.recipe.preparation_digest()
        return self._cache_dir / f"{self._digests[image_id]}-{digest}"


def _where(prepared: Prepared) -> dict[str, Any]:
    grid = prepared.frame.grid
    return {
        "shape_vox": list(grid.shape_vox),
        "rows_ras": [list(row) for row in grid.rows_ras],
        "box": [[s.start, s.stop] for s in prepared.box],
    }


def _box(values: list[list[int]]) -> Box:
    x, y, z = (slice(start, stop) for start, stop in values)
    return (x, y, z)


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    with replacing(path) as beside:
        np.save(beside, array)
