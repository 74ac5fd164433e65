"""Self-test of the backends: how fast each computes a model on this machine, and whether it agrees.

    python -m lib.jobs.child_process --parent PID lib.inference.self_test --weights FILE ... [SCAN ...]

It runs in a process of its own: a backend that ends its process must not end the server.
"""

import argparse
import hashlib
import itertools
import logging
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.backends.eager import EagerBackend, fast_bfloat16
from lib.backends.interface import Backend, windows_at_once
from lib.backends.onnx_files import export_onnx
from lib.backends.openvino import OpenVinoBackend, openvino_precisions
from lib.backends.processor import processor
from lib.errors import OrganNetError
from lib.imaging.quantities import LabelArray
from lib.imaging.scans import read_ct
from lib.inference.preprocessing import Pipeline, Prepared, keep_largest
from lib.inference.single_pass import OVERLAP, probabilities, window_of
from lib.inference.uncertainty import most_likely
from lib.jobs.priority import ServingPriority, lower_priority
from lib.models.registry import Model, load_model
from lib.storage.atomic_files import write_json
from phantom import head_and_neck_phantom

logger = logging.getLogger(__name__)

REFERENCE = "eager"
"""Name of the backend that the others are compared with: PyTorch in float32."""
MIN_MEAN_DSC, MIN_DSC = 0.995, 0.98
"""Smallest mean DSC, and smallest DSC of any organ in any scan, against the reference."""
MIN_VOXELS = 100
"""Number of voxels from which an organ of the reference counts for the DSC."""
LOST_VOXELS = 10
"""Number of voxels from which an organ of the reference must be found at all."""
MAX_DIFFERENCE = 0.05
"""Largest difference of a probability, if the reference finds no organ in any scan."""
GAIN = 0.9
"""Share of the reference's time per window below which another backend is worth while."""
ROUNDS = 5
"""Number of measurements of each backend, in turn."""
VOXELS_TESTED = 100 * 48**3
"""Number of voxels of all windows of one scan, above which only one window of it is compared."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One backend on this machine.

    Attributes:
        name: Name of the backend.
        window_s: Median time per window: of the processor, or on a GPU by the clock; None if it failed.
        mean_dsc: Mean DSC against the reference, over organs and scans; None if there was no organ.
        min_dsc: Smallest of these DSC.
        lost: Organs that the reference finds in a scan and this backend does not.
        max_difference: Largest difference of a probability.
        error: Why it cannot be used, or None.
    """

    name: str
    window_s: float | None = None
    mean_dsc: float | None = None
    min_dsc: float | None = None
    lost: tuple[str, ...] = ()
    max_difference: float = 0.0
    error: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the contours are those of the reference, within the limits of this module."""
        if self.error is not None or self.lost:
            return False
        if self.mean_dsc is None or self.min_dsc is None:
            return self.max_difference <= MAX_DIFFERENCE
        return self.mean_dsc >= MIN_MEAN_DSC and self.min_dsc >= MIN_DSC


def machine(device: str, threads: int) -> dict[str, str]:
    """Return all that the speed and the agreement of a backend depend on, besides the model."""
    model, flags = processor()
    on_gpu = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return {
        "processor": model,
        "flags": hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:16],
        "device": torch.cuda.get_device_name(device) if on_gpu else device,
        "threads": str(threads),
        **{name: _version(name) for name in ("torch", "openvino", "onnx")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def candidates(
    model: Model, onnx_file: Path, *, device: str, threads: int
) -> dict[str, Callable[[], Backend]]:
    """Return name -> function that makes the backend; the reference first. ONNX is exported where needed."""

    def from_onnx(precision: str) -> Backend:
        if not onnx_file.is_file():
            export_onnx(model, onnx_file)
        return OpenVinoBackend(onnx_file, precision=precision, threads=threads)

    made: dict[str, Callable[[], Backend]] = {
        REFERENCE: lambda: EagerBackend(model.network, device)
    }
    if fast_bfloat16(device):
        made["eager-bf16"] = lambda: EagerBackend(model.network, device, "bf16")
    if torch.device(device).type == "cuda":
        made["eager-fp16"] = lambda: EagerBackend(model.network, device, "fp16")
    elif torch.device(device).type == "cpu":
        for precision in openvino_precisions():
            name = "openvino" if precision == "f32" else f"openvino-{precision}"
            made[name] = lambda precision=precision: from_onnx(precision)  # type: ignore[misc]
    return made


def measure(
    model: Model,
    makers: Mapping[str, Callable[[], Backend]],
    cases: Sequence[Prepared],
    *,
    device: str = "cpu",
    before_window: Callable[[], object] | None = None,
) -> list[Measurement]:
    """Return the measurement of each backend; the first one is the reference.

    Args:
        model: The model.
        makers: Result of `candidates`.
        cases: Prepared scans; only one window of a large one is compared.
        device: Device of the network.
        before_window: Called before each call of a network.
    """
    backends, failed = {}, {}
    for name, make in makers.items():
        try:
            backends[name] = make()
        except Exception as error:  # noqa: BLE001 - a backend that cannot be made is not used, whatever its error
            failed[name] = Measurement(name, error=_sentence(error))
    parts = [_comparable(case, model) for case in cases]
    pipeline = Pipeline(model.recipe)

    def softmax(backend: Backend, case: Prepared) -> torch.Tensor:
        return probabilities(
            case, model, pipeline=pipeline, backend=backend, overlap=OVERLAP,
            before_window=before_window,
        )  # fmt: skip

    reference = [softmax(backends[REFERENCE], part) for part in parts]
    results = {}
    for name, backend in list(backends.items()):
        if name == REFERENCE:
            results[name] = Measurement(name, mean_dsc=1.0, min_dsc=1.0)
            continue
        try:
            outputs = [softmax(backend, part) for part in parts]
        except Exception as error:  # noqa: BLE001 - as above
            failed[name] = Measurement(name, error=_sentence(error))
            del backends[name]
        else:
            results[name] = compare(name, reference, outputs, model.recipe.labels)
    windows = _timed_windows(parts[0], model)
    times = _seconds_per_window(backends, windows, device=device, before_window=before_window)
    timed = {name: replace(result, window_s=times[name]) for name, result in results.items()}
    return [(timed | failed)[name] for name in makers]


def compare(
    name: str,
    reference: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    labels: Mapping[str, int],
) -> Measurement:
    """Return the agreement of a backend's probabilities `(K, X, Y, Z)` with those of the reference."""
    scores, lost, difference = [], [], 0.0
    for expected, actual in zip(reference, outputs, strict=True):
        difference = max(difference, float((expected - actual).abs().max()))
        first, second = _organs(expected, labels), _organs(actual, labels)
        for organ, value in labels.items():
            a, b = first == value, second == value
            if a.sum() >= LOST_VOXELS and not b.any():
                lost.append(organ)
            elif a.sum() >= MIN_VOXELS:
                scores.append(2.0 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return Measurement(
        name,
        mean_dsc=statistics.fmean(scores) if scores else None,
        min_dsc=min(scores, default=None),
        lost=tuple(dict.fromkeys(lost)),
        max_difference=difference,
    )


def choose(
    measurements: Sequence[Measurement], setting: str = "auto", *, scans: int = 1
) -> tuple[str, str]:
    """Return the backend to use, and the reason.

    Args:
        measurements: Result of `measure`.
        setting: `auto`, or the only backend that may be used instead of the reference.
        scans: Number of real scans that were compared; half precision is not chosen without one, because a
            phantom does not show whether the largest region of a doubtful organ stays the same.
    """
    if scans == 0:
        why = "no scan was at hand to compare it on"
        half = ("bf16", "fp16")
        measurements = [
            replace(m, error=m.error or why) if m.name.endswith(half) else m for m in measurements
        ]
    by_name = {m.name: m for m in measurements}
    reference_s = by_name[REFERENCE].window_s or 0.0
    if setting != "auto":
        wanted = by_name.get(setting)
        if wanted is None:
            return REFERENCE, f"this machine does not have the backend {setting}"
        if not wanted.agrees:
            return REFERENCE, f"{setting} is not used: {_why_not(wanted)}"
        return setting, "set by --conf backend"
    usable = [m for m in measurements if m.agrees and m.window_s is not None]
    best = min(usable, key=lambda m: m.window_s or 0.0, default=by_name[REFERENCE])
    seconds = ", ".join(
        f"{m.name} {m.window_s:.3f} s" if m.agrees and m.window_s is not None
        else f"{m.name} not usable ({_why_not(m)})"
        for m in measurements
    )  # fmt: skip
    if best.name != REFERENCE and (best.window_s or 0.0) > GAIN * reference_s:
        return REFERENCE, f"no other backend is much faster; per window: {seconds}"
    return best.name, f"the fastest of those that agree; per window: {seconds}"


def _why_not(measurement: Measurement) -> str:
    if measurement.error is not None:
        return measurement.error
    if measurement.lost:
        return f"it does not find {', '.join(measurement.lost)}"
    if measurement.mean_dsc is None or measurement.min_dsc is None:
        return f"a probability differs by {measurement.max_difference:.3f}"
    return (
        f"DSC against float32: mean {measurement.mean_dsc:.3f}, smallest {measurement.min_dsc:.3f}"
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, OrganNetError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _organs(softmax: torch.Tensor, labels: Mapping[str, int]) -> LabelArray:
    """Return the most likely organ of each voxel, one connected region of each, as in a contour."""
    label = most_likely(softmax)
    for value in labels.values():
        keep_largest(label, value)
    return label


def _comparable(case: Prepared, model: Model) -> Prepared:
    """Return the case, or its central window if all its windows would take too long."""
    window = window_of(model.recipe, case)
    counts = [
        len(range(0, max(0, size - side) + max(1, side // 2), max(1, side // 2)))
        for size, side in zip(case.hu.shape, window, strict=True)
    ]
    if int(np.prod(counts)) * int(np.prod(window)) <= VOXELS_TESTED:
        return case
    return replace(case, hu=_central(case, window))


def _central(case: Prepared, window: Sequence[int]) -> Any:
    starts = [max(0, size - side) // 2 for size, side in zip(case.hu.shape, window, strict=True)]
    x, y, z = (slice(start, start + side) for start, side in zip(starts, window, strict=True))
    return np.ascontiguousarray(case.hu[x, y, z])


def _timed_windows(case: Prepared, model: Model) -> torch.Tensor:
    window = model.recipe.crop_vox
    part = Pipeline(model.recipe).window(_central(case, window))
    image = np.full((part.shape[0], *window), -1.0, np.float32)
    x, y, z = part.shape[1:]
    image[:, :x, :y, :z] = part
    return torch.from_numpy(np.stack([image] * windows_at_once(window)))


def _seconds_per_window(
    backends: Mapping[str, Backend],
    windows: torch.Tensor,
    *,
    device: str,
    before_window: Callable[[], object] | None,
) -> dict[str, float]:
    now = time.perf_counter if torch.device(device).type == "cuda" else _processor_s
    times: dict[str, list[float]] = {name: [] for name in backends}
    for number, (name, backend) in itertools.product(range(ROUNDS + 1), backends.items()):
        if before_window is not None:
            before_window()
        began = now()
        backend.run(windows).cpu()  # on a GPU, the copy waits for the result
        if number:  # the first one also compiles
            times[name].append((now() - began) / len(windows))
    return {name: round(statistics.median(values), 5) for name, values in times.items()}


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _cases(model: Model, scans: Sequence[Path]) -> list[Prepared]:
    """Return the scans that can be read, prepared, and a phantom as the last one."""
    pipeline = Pipeline(model.recipe)
    phantom, _ = head_and_neck_phantom(
        1, grid_shape=(96, 96, 72), spacing_mm=(5.0, 5.0, 3.5), labels={}
    )
    cases = []
    for number, scan in enumerate(scans, 1):
        try:
            cases.append(pipeline.prepare(read_ct(scan, image_id=f"scan {number}")))
        except (OrganNetError, OSError) as error:
            logger.warning("self-test: scan %d cannot be read: %s", number, error)
    return [*cases, pipeline.prepare(phantom)]


def main() -> None:
    """Measure all backends of one model, and write the result."""
    parser = argparse.ArgumentParser()
    for flag in ("--weights", "--onnx", "--result", "--state"):
        parser.add_argument(flag, type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("scans", type=Path, nargs="*")
    flags = parser.parse_args()
    lower_priority(threads=flags.threads, device=flags.device, gpu_share=0.3)
    model = load_model(flags.weights, flags.device)
    makers = candidates(model, flags.onnx, device=flags.device, threads=flags.threads)
    cases = _cases(model, flags.scans)
    measurements = measure(
        model,
        makers,
        cases,
        device=flags.device,
        before_window=ServingPriority(flags.state).give_way,
    )
    write_json(flags.result, {
        "version": model.version,
        "sha256": model.card.get("sha256"),
        "machine": machine(flags.device, flags.threads),
        "scans": len(cases) - 1,
        "measurements": [asdict(m) for m in measurements],
    })  # fmt: skip


if __name__ == "__main__":
    main()
