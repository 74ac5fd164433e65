"""Label files that name their segments, written without the code under test."""

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lib.imaging.geometry import Grid

Segment = tuple[str, int, int]
"""Name, value and layer."""


def slicer_fields(segments: Sequence[Segment]) -> list[str]:
    """Return the key/value pairs of a header as 3D Slicer 5 writes them."""
    lines = []
    for number, (name, value, layer) in enumerate(segments):
        about = {"ID": f"Segment_{number + 1}", "LabelValue": value, "Layer": layer, "Name": name}
        lines += [f"Segment{number}_{key}:={text}" for key, text in about.items()]
    return lines


def write_seg_nrrd(
    path: Path,
    layers: Sequence[npt.NDArray[Any]],
    grid: Grid,
    pairs: Sequence[str],
    *,
    encoding: str = "gzip",
) -> Path:
    """Write label volumes `(X, Y, Z)` as one NRRD file; several along a first axis of the kind `list`."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine_ras
    vectors = ["({!r},{!r},{!r})".format(*map(float, affine[:3, axis])) for axis in range(4)]
    array = layers[0] if len(layers) == 1 else np.stack(layers)
    is_one = len(layers) == 1
    head = [
        "NRRD0004",
        f"type: {array.dtype}",
        f"dimension: {array.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {'' if is_one else 'none '}{' '.join(vectors[:3])}",
        f"kinds: {'' if is_one else 'list '}domain domain domain",
        "endian: little",
        f"encoding: {encoding}",
        f"space origin: {vectors[3]}",
        *pairs,
    ]
    data = array.tobytes(order="F")
    packed = gzip.compress(data) if encoding == "gzip" else data
    path.write_bytes(("\n".join(head) + "\n\n").encode() + packed)
    return path


def write_named_nifti(
    path: Path, array: npt.NDArray[Any], grid: Grid, names: Mapping[int, str]
) -> Path:
    """Write a label volume as TotalSegmentator does, with the names in an extension of the header."""
    rows = "".join(
        f'<Label Key="{value}" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[{name}]]></Label>'
        for value, name in names.items()
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0">'
        f"<LabelTable>{rows}</LabelTable></VolumeInformation></CaretExtension>"
    )
    image: Any = nib.Nifti1Image(array, grid.affine_ras)  # type: ignore[no-untyped-call]
    image.set_sform(grid.affine_ras, code=1)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
    nib.save(image, path)
    return path
