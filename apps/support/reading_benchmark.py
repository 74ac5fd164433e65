"""Measurement of what the process that reads files costs (ADR 28)."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from apps.support.benchmark_record import Section
from lib.dicom.ct_writer import write_ct_series
from lib.imaging.scans import parse_ct, read_ct, write_ct
from lib.imaging.volumes import CtVolume
from phantom import head_and_neck_phantom

SHAPE_VOX = (512, 512, 200)
SPACING_MM = (1.0, 1.0, 2.0)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_SETTLING_S = 0.05
"""Time in which a reader ends after its answer; its processor time is known then."""


def reading(repeats: int) -> Section:
    """Return the seconds to read a CT in this process and in a reader process, a row per format.

    Both readings alternate. Processor seconds include those of the reader and of its template.
    """
    ct, _ = head_and_neck_phantom(1, grid_shape=SHAPE_VOX, spacing_mm=SPACING_MM, labels={})
    rows, ratios = {}, {}
    with TemporaryDirectory(prefix="organnet-bench-") as name:
        for label, path in _files(Path(name), ct):
            ways = {
                "in this process": partial(parse_ct, path, "bench"),
                "in a reader": partial(read_ct, path, image_id="bench"),
            }
            clock, processor = _measured(ways, repeats)
            rows[label] = clock | {f"CPU {way}": mean for way, mean in processor.items()}
            here, in_reader = clock.values()
            suffix = label if label.startswith(".") else f".{label.lower()}"
            ratios[f"reader_vs_here{suffix}"] = in_reader / here
    notes = (
        f"{' x '.join(map(str, SHAPE_VOX))} voxels, median of {repeats}",
        "CPU: processor time of the process, its template and its readers; mean",
    )
    return Section("reading", "s", rows, ratios, notes)


def _measured(
    ways: Mapping[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds by the clock (median) and of the processors (mean) of each way."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    processor = dict.fromkeys(ways, 0.0)
    for read in ways.values():
        read()
    for _ in range(repeats):
        for name, read in ways.items():
            began_s, began = _processor_s(), time.perf_counter()
            read()
            clock[name].append(time.perf_counter() - began)
            time.sleep(_SETTLING_S)
            processor[name] += (_processor_s() - began_s) / repeats
    return {name: statistics.median(times) for name, times in clock.items()}, processor


def _processor_s() -> float:
    """Return the processor time of this process, the template of its readers, and all readers so far."""
    total = sum(os.times()[:2])
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _files(folder: Path, ct: CtVolume) -> list[tuple[str, Path]]:
    files = [(suffix, folder / f"ct{suffix}") for suffix in SUFFIXES]
    for _, path in files:
        write_ct(path, ct)
    write_ct_series(ct, folder / "series", patient_id="bench")
    return [*files, ("DICOM", folder / "series")]
