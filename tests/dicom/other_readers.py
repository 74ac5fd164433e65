"""Readers of DICOM objects by independent programs: dcmqi, highdicom, plastimatch, dciodvfy."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import SimpleITK as sitk
from pydicom.dataset import FileDataset

from lib.imaging.geometry import Grid, from_sitk, reordered_onto
from lib.imaging.quantities import MaskArray
from tests.pacs.orthancs import require_program

PROGRAMS = Path(sys.executable).parent


def errors_of(path: Path) -> list[str]:
    """Return the lines that dciodvfy (dicom3tools) reports as errors."""
    program = require_program("dciodvfy", "dicom3tools")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    output = (done.stdout + done.stderr).splitlines()
    assert output, "dciodvfy prints at least the object's class"
    return [line for line in output if line.startswith(("Error", "Abort"))]


def by_dcmqi(path: Path, grid: Grid, folder: Path) -> dict[str, MaskArray]:
    """Return the segments of a SEG by their labels, as dcmqi reads them, on `grid`."""
    folder.mkdir()
    arguments = [
        "--inputDICOM",
        str(path),
        "--outputDirectory",
        str(folder),
        "-p",
        "s",
        "-t",
        "nrrd",
    ]
    subprocess.run(
        [str(PROGRAMS / "segimage2itkimage"), *arguments], check=True, capture_output=True
    )
    metadata = json.loads((folder / "s-meta.json").read_text())
    return {
        segments[0]["SegmentLabel"]: _image(folder / f"s-{number}.nrrd", grid)
        for number, segments in enumerate(metadata["segmentAttributes"], start=1)
    }


def by_highdicom(path: Path, headers: Sequence[FileDataset]) -> dict[str, MaskArray]:
    """Return the segments of a SEG by their labels, as highdicom reads them, on the CT's grid."""
    seg = hd.seg.segread(path)
    pixels = seg.get_pixels_by_source_instance([str(h.SOPInstanceUID) for h in headers])
    return {
        seg.get_segment_description(n).segment_label: pixels[..., n - 1].transpose(2, 1, 0) > 0
        for n in seg.segment_numbers
    }


def by_plastimatch(
    path: Path, ct: Path, grid: Grid, folder: Path, *more: str
) -> dict[str, MaskArray]:
    """Return the ROIs of an RTSTRUCT by their names, as plastimatch draws them on the CT in a folder."""
    program = require_program("plastimatch", "plastimatch")
    arguments = ["--input", str(path), "--referenced-ct", str(ct), "--output-prefix", str(folder)]
    subprocess.run(
        [program, "convert", *arguments, "--prefix-format", "nrrd", *more],
        check=True,
        capture_output=True,
    )
    return {file.stem: _image(file, grid) for file in folder.glob("*.nrrd")}


def _image(path: Path, grid: Grid) -> MaskArray:
    image = sitk.ReadImage(str(path))
    turned: MaskArray = reordered_onto(
        from_sitk(image) > 0, Grid.of_sitk(image), grid, image_id="read"
    )
    return turned
