"""MONAI Label's inference task around `lib.inference`."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.errors import CheckpointError, ConfigError
from lib.inference import OVERLAP, contour
from lib.recipes import Recipe
from lib.registry import ServedModel
from lib.scans import SCAN_SUFFIXES, read_ct, write_label

_DTYPES: Mapping[str, type[np.integer[Any]]] = {
    "uint8": np.uint8,
    "uint16": np.uint16,
    "int16": np.int16,
}


class OrganNetInferTask(InferTask):
    """`POST /infer/organnet25d`: a scan in, its organs out, on the scan's own grid."""

    def __init__(self, served: ServedModel, recipe: Recipe) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(recipe.labels),
            dimension=3,
            description=f"OrganNet2.5D: {len(recipe.labels)} organs at risk in head-and-neck CT",
            config={"overlap": OVERLAP},
        )
        self._served = served

    def is_valid(self) -> bool:
        """Return whether a model can be served: clients list the task only then."""
        try:
            self._served.get()
        except CheckpointError:
            return False
        return True

    def info(self) -> dict[str, Any]:
        """Return what clients show of the task, the served version among it."""
        info: dict[str, Any] = super().info()
        model = self._served.get()
        return {**info, "labels": dict(model.recipe.labels), "version": model.version}

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of a label file, which the caller removes, and what to say about it.

        Raises:
            NoModelError: If no model is served.
            ScanError: If the image is not one regular CT.
            ConfigError: If the request asks for a format or a number that there is not.
        """
        suffix, dtype, overlap = _wishes(request)
        started = time.perf_counter()
        model = self._served.get()
        ct = read_ct(Path(request["image"]), image_id=request.get("image_id"))
        read_s = time.perf_counter() - started
        found = contour(ct, model, device=self._served.device, overlap=overlap)
        before_write = time.perf_counter()
        folder = Path(tempfile.mkdtemp(prefix="organnet-"))
        path = folder / f"{ct.image_id}{suffix}"
        write_label(path, found.label, dtype=dtype)
        ended = time.perf_counter()
        volumes = found.label.volumes_ml()
        seconds = {
            "read": round(read_s, 3),
            **found.seconds,
            "write": round(ended - before_write, 3),
            "total": round(ended - started, 3),
        }
        return str(path), {
            # In the order of the values: Slicer gives the n-th value in the file to the n-th name.
            "label_names": {name: model.recipe.labels[name] for name in volumes},
            "volumes_ml": volumes,
            "model_version": found.version,
            "recipe": model.recipe.name,
            "seconds": seconds,
            "latencies": seconds,
            "centroids": {},
        }


def _wishes(request: Mapping[str, Any]) -> tuple[str, type[np.integer[Any]], float]:
    suffix = request.get("result_extension") or ".nii.gz"
    if suffix not in SCAN_SUFFIXES:
        raise ConfigError(f"result_extension {suffix!r} is none of {', '.join(SCAN_SUFFIXES)}")
    if suffix == ".nii.gz" and request.get("result_compress") is False:
        suffix = ".nii"
    dtype = request.get("result_dtype") or "uint8"
    if dtype not in _DTYPES:
        raise ConfigError(f"result_dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    try:
        overlap = float(request.get("overlap", OVERLAP))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"overlap {request['overlap']!r} is no number") from error
    if not 0 <= overlap <= 0.9:
        raise ConfigError(f"overlap must be from 0 to 0.9, not {overlap}")
    return suffix, _DTYPES[dtype], overlap
