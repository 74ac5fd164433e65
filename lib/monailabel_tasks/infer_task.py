"""MONAI Label's inference task around `lib.inference.single_pass`."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib.errors import CheckpointError, ConfigError
from lib.imaging.formats import SCAN_SUFFIXES
from lib.imaging.geometry import to_sitk
from lib.imaging.scans import read_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.ensemble import (
    DeepContours,
    DeepOptions,
    contour_deeply,
    plan,
    write_uncertainty_map,
)
from lib.inference.single_pass import OVERLAP, ContourResult, contour
from lib.jobs.priority import ServingPriority
from lib.models.registry import Model
from lib.models.served_model import ServedModel
from lib.recipes.schema import Recipe
from lib.server.requests import as_flag, as_number

logger = logging.getLogger(__name__)

_DTYPES: Mapping[str, type[np.integer[Any]]] = {
    "uint8": np.uint8,
    "uint16": np.uint16,
    "int16": np.int16,
}


class OrganNetInferTask(InferTask):
    """`POST /infer/organnet25d`: a scan in, its organs out, on the scan's own grid."""

    def __init__(
        self, served: ServedModel, recipe: Recipe, turns: ServingPriority | None = None
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(recipe.labels),
            dimension=3,
            description=f"OrganNet2.5D: {len(recipe.labels)} organs at risk in head-and-neck CT",
            # Clients show these to the user. `uncertainty_map` is not among them: they would take the map for
            # a label.
            config={"overlap": OVERLAP, "deep": False},
        )
        self._served = served
        self._turns = turns
        self._one_at_a_time = threading.Lock()
        self._deep_one_at_a_time = threading.Lock()

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
        try:
            model = self._served.get()
        except CheckpointError:
            # It was there a moment ago, when `is_valid` looked.
            return info
        return {**info, "labels": dict(model.recipe.labels), "version": model.version}

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of a label file, which the caller removes, and what to say about it.

        One scan is contoured at a time: two would each take twice as long, and twice the memory. A request
        with `deep` lets others through between its passes; what comes back then says under `uncertainty` how
        sure each organ's contour is, and `uncertainty_map` asks for the map as the file in place of the label.

        Raises:
            NoModelError: If no model is served.
            ScanError: If the image is not one regular CT.
            ConfigError: If the request asks for a format or a number that there is not.
        """
        with self._turns.inference() if self._turns else nullcontext():
            return self._answer(request, InferOptions.of(request))

    def _answer(
        self, request: Mapping[str, Any], wishes: "InferOptions"
    ) -> tuple[str, dict[str, Any]]:
        started = time.perf_counter()
        model = self._served.get()
        ct = read_ct(Path(request["image"]), image_id=request.get("image_id"))
        read_s = time.perf_counter() - started
        found = self._contour(ct, model, wishes)
        before_write = time.perf_counter()
        path = _write(found, wishes)
        ended = time.perf_counter()
        volumes = found.label.volumes_ml()
        seconds = {
            "read": round(read_s, 3),
            **found.seconds,
            "write": round(ended - before_write, 3),
            "total": round(ended - started, 3),
        }
        # In the order of the values: Slicer gives the n-th value in the file to the n-th name.
        names = {name: model.recipe.labels[name] for name in _by_value(volumes, model)}
        return str(path), {
            "label_names": {} if wishes.is_map else names,
            "volumes_ml": volumes,
            "model_version": found.version,
            "recipe": model.recipe.name,
            "seconds": seconds,
            "latencies": seconds,
            "centroids": {},
            **(found.summary() if isinstance(found, DeepContours) else {}),
        }

    def _contour(self, ct: CtVolume, model: Model, wishes: "InferOptions") -> ContourResult:
        device = self._served.device
        if not wishes.is_deep:
            with self._one_at_a_time:
                return contour(ct, model, device=device, overlap=wishes.overlap)
        with self._deep_one_at_a_time:
            options = DeepOptions(overlap=max(DeepOptions().overlap, wishes.overlap))
            started = time.perf_counter()
            earlier, notes = self._served.registry.earlier(model, options.models - 1, device=device)
            planned = plan(model, options, earlier=earlier, notes=notes)
            models_s = round(time.perf_counter() - started, 3)
            logger.info("%s, deep, on %s: %s", ct.image_id, device, planned)
            found = contour_deeply(ct, planned, device=device, turn=self._one_at_a_time)
            return replace(found, seconds={"models": models_s, **found.seconds})


@dataclass(frozen=True, slots=True)
class InferOptions:
    """The form in which a client wants its label."""

    suffix: str
    dtype: type[np.integer[Any]]
    is_compressed: bool
    overlap: float
    is_deep: bool
    is_map: bool

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "InferOptions":
        """Return the options of one request, checked."""
        suffix = str(request.get("result_extension") or ".nii.gz")
        if suffix not in SCAN_SUFFIXES:
            raise ConfigError(f"result_extension {suffix!r} is none of {', '.join(SCAN_SUFFIXES)}")
        dtype = str(request.get("result_dtype") or "uint8")
        if dtype not in _DTYPES:
            raise ConfigError(f"result_dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        is_deep = as_flag("deep", request.get("deep", False))
        is_map = as_flag("uncertainty_map", request.get("uncertainty_map", False))
        if is_map and not is_deep:
            raise ConfigError("uncertainty_map: only deep makes one; send deep: true with it")
        if is_map and as_flag("save_label", request.get("save_label", False)):
            raise ConfigError("uncertainty_map: the map is no label; ask for it without save_label")
        return cls(
            suffix,
            _DTYPES[dtype],
            as_flag("result_compress", request.get("result_compress", True)),
            as_number("overlap", request.get("overlap", OVERLAP), 0, 0.9),
            is_deep,
            is_map,
        )


def _by_value(names: Iterable[str], model: Model) -> list[str]:
    return sorted(names, key=lambda name: model.recipe.labels[name])


def _write(found: ContourResult, wishes: InferOptions) -> Path:
    """Write the label, or the map that was asked for, to a new temporary file.

    None is left where it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix="organnet-", suffix=wishes.suffix)
    os.close(handle)
    path = Path(name)
    try:
        if wishes.is_map and isinstance(found, DeepContours):
            write_uncertainty_map(path, found)
        else:
            _write_label(path, found.label, wishes)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _write_label(path: Path, label: LabelVolume, wishes: InferOptions) -> None:
    if wishes.is_compressed or wishes.suffix.startswith(".nii"):
        write_label(path, label, dtype=wishes.dtype)
    else:
        # OHIF asks for it: it would have to unpack the file in the browser.
        image = to_sitk(label.array.astype(wishes.dtype), label.grid)
        sitk.WriteImage(image, str(path), useCompression=False)
