"""Measurement of what the process that reads files costs (ADR 28)."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from apps.support.benchmark_record import Section
from lib.dicom.ct_writer import write_ct_series
from lib.imaging.scans import parse_ct, read_ct, write_ct
from lib.imaging.volumes import CtVolume
from phantom import head_and_neck_phantom

SHAPE_VOX = (512, 512, 200)
SPACING_MM = (1.0, 1.0, 2.0)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


def reading(repeats: int) -> Section:
    """Return the seconds to read a CT in this process and in a reader process, a row per format."""
    ct, _ = head_and_neck_phantom(1, grid_shape=SHAPE_VOX, spacing_mm=SPACING_MM, labels={})
    rows, ratios = {}, {}
    with TemporaryDirectory(prefix="organnet-bench-") as name:
        for label, path in _files(Path(name), ct):
            here: list[float] = []
            in_reader: list[float] = []
            for _ in range(repeats):
                here.append(_seconds(lambda path=path: parse_ct(path, "bench")))  # type: ignore[misc]
                in_reader.append(_seconds(lambda path=path: read_ct(path, image_id="bench")))  # type: ignore[misc]
            medians = statistics.median(here), statistics.median(in_reader)
            rows[label] = {"in this process": medians[0], "in a reader": medians[1]}
            ratios[f"reader_vs_here{label if label.startswith('.') else '.' + label.lower()}"] = (
                medians[1] / medians[0]
            )
    shape = " x ".join(map(str, SHAPE_VOX))
    return Section("reading", "s", rows, ratios, (f"{shape} voxels, median of {repeats}",))


def _files(folder: Path, ct: CtVolume) -> list[tuple[str, Path]]:
    files = [(suffix, folder / f"ct{suffix}") for suffix in SUFFIXES]
    for _, path in files:
        write_ct(path, ct)
    write_ct_series(ct, folder / "series", patient_id="bench")
    return [*files, ("DICOM", folder / "series")]


def _seconds(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began
