"""Files that name their segments, as 3D Slicer, MITK, ITK and TotalSegmentator write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from lib.errors import GeometryError, LabelError
from lib.imaging.geometry import Grid, to_sitk
from lib.imaging.named_labels import NamedLabel, read_named_label
from lib.imaging.scans import write_label
from lib.imaging.segments import Segment, named_segments
from lib.imaging.volumes import LabelVolume
from tests.phantoms import make_grid, rotation
from tests.segment_files import slicer_fields, write_named_nifti, write_seg_nrrd

GRID = make_grid(directions=rotation(about_x_deg=10, about_z_deg=20))


def box(*, at: int, value: int = 1, dtype: Any = np.uint8) -> Any:
    """Return a volume with 4 x 5 x 6 voxels of one value, from `at` along the first axis."""
    array = np.zeros(GRID.shape_vox, dtype)
    array[at : at + 4, 3:8, 2:8] = value
    return array


def read(path: Path, grid: Grid | None = GRID) -> NamedLabel:
    named = read_named_label(path, image_id="a", image_grid=grid)
    assert named is not None
    return named


def test_a_volume_is_read_by_the_names_of_3d_slicer(tmp_path: Path) -> None:
    array = box(at=1, value=2) + box(at=10, value=1)
    fields = slicer_fields([("Parotid_L", 2, 0), ("Brain stem", 1, 0), ("empty", 3, 0)])
    named = read(write_seg_nrrd(tmp_path / "a.seg.nrrd", [array], GRID, fields))
    assert named.present == {(0, 1): "Brain stem", (0, 2): "Parotid_L"}
    assert named.listed == ("Parotid_L", "Brain stem", "empty")
    np.testing.assert_array_equal(named.masks("a")["Parotid_L"], array == 2)


@pytest.mark.parametrize("encoding", ["gzip", "raw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_layers_may_overlap(tmp_path: Path, encoding: str, dtype: Any) -> None:
    first, second = (
        box(at=1, dtype=dtype),
        box(at=3, dtype=dtype) + box(at=10, value=2, dtype=dtype),
    )
    fields = slicer_fields([("A", 1, 0), ("B", 1, 1), ("C", 2, 1)])
    file = write_seg_nrrd(tmp_path / "a.seg.nrrd", [first, second], GRID, fields, encoding=encoding)
    masks = read(file).masks("a")
    np.testing.assert_array_equal(masks["A"], first == 1)
    np.testing.assert_array_equal(masks["B"], second == 1)
    np.testing.assert_array_equal(masks["C"], second == 2)
    assert (masks["A"] & masks["B"]).sum() == 2 * 5 * 6


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_names_that_itk_copied_are_read(tmp_path: Path, suffix: str) -> None:
    image = to_sitk(box(at=2, value=7), GRID)
    for key, value in {"Name": "Larynx", "LabelValue": "7", "Layer": "0"}.items():
        image.SetMetaData(f"Segment0_{key}", value)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=True)
    named = read(tmp_path / f"a{suffix}")
    assert named.present == {(0, 7): "Larynx"}
    assert named.layers[0].sum() == 7 * 4 * 5 * 6


def test_layers_that_itk_wrote_are_read(tmp_path: Path) -> None:
    # ITK writes the components of a vector image as the first axis, of the kind `vector`.
    image = sitk.Compose(to_sitk(box(at=1), GRID), to_sitk(box(at=3), GRID))
    groups = [{"labels": [{"name": name, "value": 1}]} for name in ("A", "B")]
    image.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", json.dumps(groups))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), useCompression=True)
    masks = read(tmp_path / "a.nrrd").masks("a")
    np.testing.assert_array_equal(masks["A"], box(at=1) == 1)
    np.testing.assert_array_equal(masks["B"], box(at=3) == 1)


def test_segments_of_old_slicer_files_are_layers(tmp_path: Path) -> None:
    fields = ["Segment0_Name:=A", "Segment1_Name:=B"]
    file = write_seg_nrrd(tmp_path / "a.seg.nrrd", [box(at=1), box(at=3)], GRID, fields)
    assert named_segments(file, "a") == (Segment("A", 1, 0), Segment("B", 1, 1))


def test_names_in_the_header_of_a_nifti_file_are_read(tmp_path: Path) -> None:
    names = {3: "brainstem", 9: "x<y&z"}
    file = write_named_nifti(tmp_path / "a.nii.gz", box(at=1, value=3), GRID, names)
    assert named_segments(file, "a") == (Segment("brainstem", 3), Segment("x<y&z", 9))
    assert read(file).present == {(0, 3): "brainstem"}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_file_without_names_has_none(tmp_path: Path, suffix: str) -> None:
    write_label(tmp_path / f"a{suffix}", LabelVolume(box(at=1), GRID, {}))
    assert read_named_label(tmp_path / f"a{suffix}", image_id="a", image_grid=GRID) is None


REFUSED = {
    "two names of one value": (
        [("A", 1, 0), ("B", 1, 0)],
        "names both 'A' and 'B' for the value 1",
    ),
    "background as a segment": ([("A", 1, 0), ("B", 0, 0)], r"gives 'B' \(0\) as values"),
    "a value above 255": ([("A", 1, 0), ("B", 256, 0)], r"gives 'B' \(256\) as values"),
    "a value without a name": ([("A", 2, 0)], r"holds the values \[1\].*names \{'A': 2\}"),
    "a layer that is missing": ([("A", 1, 0), ("B", 1, 1)], "a layer of 'B' that it does not hold"),
    "a negative layer": ([("A", 1, -1)], "a layer of 'A' that it does not hold"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_contradictory_names_are_refused(tmp_path: Path, case: str) -> None:
    segments, says = REFUSED[case]
    file = write_seg_nrrd(tmp_path / "a.seg.nrrd", [box(at=1)], GRID, slicer_fields(segments))
    with pytest.raises(LabelError, match=says):
        read(file)


def test_a_name_without_a_value_is_refused(tmp_path: Path) -> None:
    fields = [*slicer_fields([("A", 1, 0)]), "Segment1_Name:=B"]
    with pytest.raises(LabelError, match="Segment1 has a name and no LabelValue"):
        read(write_seg_nrrd(tmp_path / "a.seg.nrrd", [box(at=1)], GRID, fields))


def layered(tmp_path: Path, pairs: list[str] | None = None) -> Path:
    fields = slicer_fields([("A", 1, 0), ("B", 1, 1)]) if pairs is None else pairs
    return write_seg_nrrd(tmp_path / "a.seg.nrrd", [box(at=1), box(at=3)], GRID, fields)


def test_layers_without_names_are_refused_as_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="has several layers and does not name its segments"):
        read(layered(tmp_path, []))


def test_layers_on_another_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="the label lies on 20 x 16 x 12"):
        read(layered(tmp_path), make_grid())


def test_damaged_layers_are_refused(tmp_path: Path) -> None:
    file = layered(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[:-40])
    with pytest.raises(LabelError, match=r"damaged|truncated"):
        read(file)
    for old, new in (
        (b"sizes: 2 20 16 12", b"sizes: 2 20 x 12"),
        (b"type: uint8", b"type: float"),
        (b"encoding: gzip", b"encoding: hex"),
        (b"sizes: 2", b"sizes: 4294967296"),
        (b"space origin:", b"space start:"),
    ):
        assert old in content
        file.write_bytes(content.replace(old, new))
        with pytest.raises(LabelError, match=r"again|expected"):
            read(file)


def test_negative_values_in_layers_are_refused(tmp_path: Path) -> None:
    layers = [box(at=1, dtype=np.int16), box(at=3, value=-1, dtype=np.int16)]
    fields = slicer_fields([("A", 1, 0), ("B", 1, 1)])
    with pytest.raises(LabelError, match="run from -1 to 1; 0 to 255 expected"):
        read(write_seg_nrrd(tmp_path / "a.seg.nrrd", layers, GRID, fields))


CROPPED = "Segmentation_ReferenceImageExtentOffset:=2 3 4"


def cropped_grid(start: tuple[float, float, float], shape: tuple[int, int, int]) -> Grid:
    affine = GRID.affine_ras
    affine[:3, 3] = (affine @ [*start, 1])[:3]
    return Grid.from_affine(shape, affine)


@pytest.mark.parametrize("count", [1, 2])
def test_a_segmentation_that_slicer_cropped_is_put_in_its_place(tmp_path: Path, count: int) -> None:
    part = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7) % 2
    fields = [*slicer_fields([("A", 1, 0), ("B", 1, 1)][:count]), CROPPED]
    grid = cropped_grid((2, 3, 4), (5, 6, 7))
    named = read(write_seg_nrrd(tmp_path / "a.seg.nrrd", [part] * count, grid, fields))
    assert named.grid == GRID
    assert len(named.layers) == count
    for layer in named.layers:
        np.testing.assert_array_equal(layer[2:7, 3:9, 4:11], part)
        assert layer.sum() == part.sum() == 5 * 6 * 7 / 2
    assert named.changes == (
        "the file holds a part of 5 x 6 x 7 voxels; the rest was stored as background",
    )


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        ((2.5, 3, 4), (5, 6, 7)),  # between the voxels
        ((16, 3, 4), (5, 6, 7)),  # beyond the last voxel
        ((-1, 3, 4), (5, 6, 7)),
        ((0, 0, 0), (20, 16, 13)),  # larger
    ],
)
def test_a_part_of_another_grid_is_refused(
    tmp_path: Path, start: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    part = np.ones(shape, np.uint8)
    fields = [*slicer_fields([("A", 1, 0)]), CROPPED]
    file = write_seg_nrrd(tmp_path / "a.seg.nrrd", [part], cropped_grid(start, shape), fields)
    with pytest.raises(GeometryError, match="the label lies on"):
        read(file)


def test_small_parts_in_very_many_layers_are_refused(tmp_path: Path) -> None:
    shape = (512, 512, 200)
    whole = Grid.from_affine(shape, GRID.affine_ras)
    layers = [np.ones((1, 1, 1), np.uint8)] * 21
    fields = [*slicer_fields([("A", 1, 0)]), CROPPED]
    file = write_seg_nrrd(
        tmp_path / "a.seg.nrrd", layers, Grid.from_affine((1, 1, 1), GRID.affine_ras), fields
    )
    with pytest.raises(LabelError, match="21 layers on the image's grid exceed"):
        read(file, whole)
