"""MONAI Label's inference task."""

import copy
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
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
from lib.inference.backend_choice import BackendChoice
from lib.inference.ensemble import (
    DeepContours,
    DeepOptions,
    contour_ensemble,
    plan_passes,
    write_uncertainty_map,
)
from lib.inference.organ_summary import OrganSummary, organ_summaries
from lib.inference.prediction_records import PredictionRecords
from lib.inference.single_pass import OVERLAP, ContourResult, StageTimer, contour
from lib.isolation.inputs import Input
from lib.jobs.inference_queue import InferenceQueue, Turn
from lib.jobs.priority import ServingPriority
from lib.models.registry import Model
from lib.models.served_model import ServedModel
from lib.prompts.kept_runs import KeptRuns
from lib.prompts.service import RunKeeper, run_key
from lib.recipes.schema import Recipe
from lib.server.requests import MAX_JOB_ID, as_flag, as_number
from lib.storage.leftovers import scratch_prefix

logger = logging.getLogger(__name__)

_DTYPES: Mapping[str, type[np.integer[Any]]] = {
    "uint8": np.uint8,
    "uint16": np.uint16,
    "int16": np.int16,
}


class OrganNetInferTask(InferTask):
    """Contours the organs in a scan, on the scan's own grid (`POST /infer/organnet25d`)."""

    def __init__(
        self,
        served: ServedModel,
        recipe: Recipe,
        priority: ServingPriority | None = None,
        *,
        queue: InferenceQueue,
        backends: BackendChoice,
        records: PredictionRecords,
        kept_runs: KeptRuns,
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(recipe.labels),
            dimension=3,
            description=f"OrganNet2.5D: {len(recipe.labels)} organs at risk in head-and-neck CT",
            # Clients show these options to the user. `uncertainty_map` is not among them, because clients
            # would show the map as a label.
            config={"overlap": OVERLAP, "deep": False},
        )
        self._served = served
        self._priority = priority
        self._queue = queue
        self._backends = backends
        self._records = records
        self._kept_runs = kept_runs
        self._deep_one_at_a_time = threading.Lock()

    def is_valid(self) -> bool:
        """Return whether there is an active model; without one clients do not list the task."""
        return self._served.has_model()

    def info(self) -> dict[str, Any]:
        """Return the description of the task for the clients, with the version of the active model."""
        info: dict[str, Any] = super().info()
        try:
            model = self._served.get()
        except CheckpointError:
            # The model was removed after `is_valid` was called.
            return info
        return {**info, "labels": dict(model.recipe.labels), "version": model.version}

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the path of a label file, which the caller removes, and the parameters for the client.

        One scan is contoured at a time, in the order of the requests: two at once would each take twice as
        long, and together twice the memory. Equal requests at the same time share one computation. A request
        with `deep` lets other requests run between its passes. Its parameters contain the spread of the passes
        for each organ, and with `uncertainty_map` the file is the map, not the label. The parameter `organs` is
        the summary of each organ (`lib.inference.organ_summary`); for an image of the store it is kept.

        Raises:
            QueueFullError: If too many requests wait already.
            CancelledRequestError: If the request was cancelled by its `job_id`.
            NoModelError: If there is no active model.
            ScanError: If the image is not one regular CT.
            ConfigError: If an option has an invalid value.
        """
        model, options = self._served.get(), InferOptions.of(request)
        image = Input(Path(request["image"]))
        key = (model.version, options, image.path, image.state)
        with self._priority.inference() if self._priority else nullcontext():
            return self._queue.run(
                key,
                lambda turn: self._contour_file(request, model, options, turn, image),
                lambda result: _copy(result, options.suffix),
                image_id=str(request.get("image_id", "")),
                request_id=str(request.get("job_id") or "")[:MAX_JOB_ID],
            )

    def _contour_file(
        self,
        request: Mapping[str, Any],
        model: Model,
        options: "InferOptions",
        turn: Turn,
        image: Input,
    ) -> tuple[str, dict[str, Any]]:
        # An ensemble takes a turn for each of its passes.
        with self._deep_one_at_a_time if options.is_deep else turn:
            started, timer, step = time.perf_counter(), StageTimer(), turn.progress.step
            step("read")
            ct = read_ct(image.path, image_id=request.get("image_id"))
            timer.lap("read")
            result = self._contour(ct, model, options, turn, image)
            timer.lap("contour")
            organs = self._summarise(ct, result, request, image)
            timer.lap("summary")
            step("write")
            path = _write(result, options)
            timer.lap("write")
            total_s = round(time.perf_counter() - started, 3)
        volumes = result.label.volumes_ml()
        laps = timer.seconds
        seconds = {"read": laps["read"], **result.seconds, "summary": laps["summary"],
                   "write": laps["write"], "total": total_s}  # fmt: skip
        # Ordered by label value: Slicer assigns the n-th value in the file to the n-th name.
        labels = model.recipe.labels
        names = {name: labels[name] for name in sorted(volumes, key=labels.__getitem__)}
        return str(path), {
            "label_names": {} if options.is_map else names,
            "volumes_ml": volumes,
            "organs": {name: asdict(organ) for name, organ in organs.items()},
            "model_version": result.version,
            "recipe": model.recipe.name,
            "seconds": seconds,
            "latencies": seconds,
            "centroids": {},
            **(result.summary() if isinstance(result, DeepContours) else {}),
        }

    def _summarise(
        self, ct: CtVolume, result: ContourResult, request: Mapping[str, Any], image: Input
    ) -> dict[str, OrganSummary]:
        """Return the summary of each organ, and keep it if the image is one of the store."""
        if result.uncertainty is None:
            return {}
        organs = organ_summaries(ct, result.label, result.uncertainty)
        if not request.get("scan"):
            is_deep = isinstance(result, DeepContours)
            self._records.keep(str(request["image_id"]), image, result, organs, is_deep=is_deep)
        return organs

    def _contour(
        self, ct: CtVolume, model: Model, options: "InferOptions", turn: Turn, image: Input
    ) -> ContourResult:
        device = self._served.device
        if not options.is_deep:
            keeper = RunKeeper(ct)
            result = contour(
                ct,
                model,
                overlap=options.overlap,
                backend=self._backends.backend_of(model),
                on_step=turn.progress.step,
                with_uncertainty=True,
                on_probabilities=keeper.take,
            )
            self._kept_runs.put(run_key(image, model), keeper.run(result))
            return result
        deep = DeepOptions(overlap=max(DeepOptions().overlap, options.overlap))
        started = time.perf_counter()
        earlier, notes = self._served.registry.earlier(model, deep.models - 1, device=device)
        planned = plan_passes(model, deep, earlier=earlier, notes=notes)
        models_s = round(time.perf_counter() - started, 3)
        logger.info("%s, deep, on %s: %s", ct.image_id, device, planned)
        result = contour_ensemble(
            ct,
            planned,
            device=device,
            backend_of=self._backends.backend_of,
            pass_context=turn,
            on_step=turn.progress.step,
        )
        return replace(result, seconds={"models": models_s, **result.seconds})


@dataclass(frozen=True, slots=True)
class InferOptions:
    """Options of one inference request: file format, sliding-window overlap and uncertainty."""

    suffix: str
    dtype: type[np.integer[Any]]
    is_compressed: bool
    overlap: float
    is_deep: bool
    is_map: bool

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "InferOptions":
        """Return the validated options of a request.

        Raises:
            ConfigError: If a value is invalid.
        """
        suffix = str(request.get("result_extension") or ".nii.gz")
        if suffix not in SCAN_SUFFIXES:
            raise ConfigError(
                f"result_extension {suffix!r} is not one of {', '.join(SCAN_SUFFIXES)}"
            )
        dtype = str(request.get("result_dtype") or "uint8")
        if dtype not in _DTYPES:
            raise ConfigError(f"result_dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
        is_deep = as_flag("deep", request.get("deep", False))
        is_map = as_flag("uncertainty_map", request.get("uncertainty_map", False))
        if is_map and not is_deep:
            raise ConfigError(
                "uncertainty_map: the map needs deep inference; send deep: true with it"
            )
        if is_map and as_flag("save_label", request.get("save_label", False)):
            raise ConfigError(
                "uncertainty_map: the map cannot be saved as a label; leave out save_label"
            )
        return cls(
            suffix,
            _DTYPES[dtype],
            as_flag("result_compress", request.get("result_compress", True)),
            as_number("overlap", request.get("overlap", OVERLAP), 0, 0.9),
            is_deep,
            is_map,
        )


def _write(result: ContourResult, options: InferOptions) -> Path:
    """Write the label or the uncertainty map to a temporary file, which is removed if writing fails."""
    if not options.is_map or not isinstance(result, DeepContours):
        return write_label_file(result.label, options)
    return _scratch_file(options.suffix, lambda path: write_uncertainty_map(path, result))


def write_label_file(label: LabelVolume, options: InferOptions) -> Path:
    """Write a label to a temporary file, as a request wants it; the file is removed if writing fails."""

    def write(path: Path) -> None:
        if options.is_compressed or options.suffix.startswith(".nii"):
            write_label(path, label, dtype=options.dtype)
        else:
            # OHIF asks for uncompressed files, which the browser does not need to unpack.
            image = to_sitk(label.array.astype(options.dtype), label.grid)
            sitk.WriteImage(image, str(path), useCompression=False)

    return _scratch_file(options.suffix, write)


def _copy(result: tuple[str, dict[str, Any]], suffix: str) -> tuple[str, dict[str, Any]]:
    """Return a result with a copy of its file, which its caller may remove."""
    file, params = result
    path = _scratch_file(suffix, lambda target: shutil.copyfile(file, target))
    return str(path), copy.deepcopy(params)


def _scratch_file(suffix: str, write: Callable[[Path], object]) -> Path:
    """Return a temporary file that `write` has written; it is removed if writing fails."""
    handle, name = tempfile.mkstemp(prefix=scratch_prefix(), suffix=suffix)
    os.close(handle)
    path = Path(name)
    try:
        write(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
