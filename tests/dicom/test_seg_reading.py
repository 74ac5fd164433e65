"""Reading SEGs of other writers: dcmqi, highdicom with other options, and viewers."""

import json
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from lib.dicom.object_attributes import ObjectProvenance
from lib.dicom.rtstruct import write_rtstruct
from lib.dicom.seg import read_seg, write_seg
from lib.errors import GeometryError, LabelError
from lib.imaging.geometry import to_sitk
from lib.organs.table import ORGANS
from tests.dicom.organ_phantom import LABELS, Case, make_case
from tests.dicom.other_readers import PROGRAMS
from tests.dicom.seg_files import FrameSpec, SegSpec, plane, read, voxels, write_viewer_seg


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("seg_reading") / "ct")


# --- viewers


def test_frames_of_some_slices_in_any_order_are_placed_by_their_position(
    case: Case, tmp_path: Path
) -> None:
    spec = SegSpec(
        {1: "Parotid_L", 5: "Brainstem", 7: "Segment 7"},
        [
            FrameSpec(5, case.headers[9], plane(case, (3, 4, 3, 4))),
            FrameSpec(1, case.headers[2], plane(case, (10, 11, 11, 11))),
            FrameSpec(5, case.headers[7], plane(case, (4, 4, 4, 4))),
            FrameSpec(5, case.headers[1], plane(case)),
        ],
    )
    structures = read(case, tmp_path, spec)
    assert structures.names == ("Parotid_L", "Brainstem", "Segment 7")
    assert structures.changes == ("segments without a voxel: 'Segment 7'",)
    assert set(structures.masks) == {"Parotid_L", "Brainstem"}
    assert voxels(structures, "Brainstem") == [[3, 4, 9], [4, 4, 7]]
    assert voxels(structures, "Parotid_L") == [[10, 11, 2], [11, 11, 2]]


def test_segments_may_overlap(case: Case, tmp_path: Path) -> None:
    frames = [
        FrameSpec(1, case.headers[3], plane(case, (5, 5, 8, 8))),
        FrameSpec(2, case.headers[3], plane(case, (8, 8, 9, 9))),
    ]
    structures = read(case, tmp_path, SegSpec({1: "A", 2: "B"}, frames))
    assert [int(mask.sum()) for mask in structures.masks.values()] == [16, 4]


def test_a_fractional_segment_holds_voxels_of_at_least_one_half(case: Case, tmp_path: Path) -> None:
    pixels = plane(case)
    pixels[6, 3:6] = (127, 128, 255)  # of 255: 0.498, 0.502, 1
    frames = [FrameSpec(1, case.headers[3], pixels)]
    structures = read(case, tmp_path, SegSpec({1: "A"}, frames, kind="FRACTIONAL"))
    assert voxels(structures, "A") == [[4, 6, 3], [5, 6, 3]]


def test_a_label_map_has_a_segment_for_each_value(case: Case, tmp_path: Path) -> None:
    pixels = plane(case)
    pixels[6, 3:6] = (1, 2, 2)
    frames = [FrameSpec(0, case.headers[3], pixels)]
    structures = read(case, tmp_path, SegSpec({1: "A", 2: "B"}, frames, kind="LABELMAP"))
    assert voxels(structures, "A") == [[3, 6, 3]]
    assert voxels(structures, "B") == [[4, 6, 3], [5, 6, 3]]


def test_a_frame_without_a_position_is_placed_on_its_source_slice(
    case: Case, tmp_path: Path
) -> None:
    frames = [FrameSpec(1, case.headers[4], plane(case, (2, 3, 2, 3)))]
    structures = read(case, tmp_path, SegSpec({1: "A"}, frames, has_positions=False))
    assert voxels(structures, "A") == [[2, 3, 4]]


def corner_lps(case: Case, x: int, y: int, z: int) -> list[float]:
    """Return the position of a voxel, from the header of its slice alone (PS3.3 C.7.6.2.1.1)."""
    header = case.headers[z]
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    down_mm, right_mm = (float(v) for v in header.PixelSpacing)
    start = np.array(header.ImagePositionPatient, float)
    return [float(v) for v in start + row * right_mm * x + column * down_mm * y]


def test_frames_whose_rows_run_the_other_way_are_turned(case: Case, tmp_path: Path) -> None:
    size_x, size_y, _ = case.grid.shape_vox
    row, column = np.array(case.headers[0].ImageOrientationPatient, float).reshape(2, 3)
    frame = FrameSpec(
        1,
        case.headers[4],
        plane(case, (1, 2, 1, 2)),
        position=corner_lps(case, size_x - 1, size_y - 1, 4),
        orientation=[*(-row), *(-column)],
    )
    structures = read(case, tmp_path, SegSpec({1: "A"}, [frame]))
    assert voxels(structures, "A") == [[size_x - 2, size_y - 3, 4]]


def test_frames_whose_rows_are_the_scans_columns_are_turned(case: Case, tmp_path: Path) -> None:
    row, column = np.array(case.headers[0].ImageOrientationPatient, float).reshape(2, 3)
    pixels = np.zeros(case.grid.shape_vox[:2], np.uint8)
    pixels[7, 2] = 1  # 7 along the scan's x, 2 along its y
    frame = FrameSpec(1, case.headers[4], pixels, orientation=[*column, *row])
    write_viewer_seg(tmp_path / "turned.dcm", SegSpec({1: "A"}, [frame]))
    dataset = pydicom.dcmread(tmp_path / "turned.dcm")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = list(reversed(measures.PixelSpacing))
    dataset.save_as(tmp_path / "turned.dcm")
    structures = read_seg(tmp_path / "turned.dcm", case.headers, case.grid, image_id="case7")
    assert voxels(structures, "A") == [[7, 2, 4]]


def test_a_seg_that_names_the_frame_of_reference_only_is_read_with_a_note(
    case: Case, tmp_path: Path
) -> None:
    frames = [FrameSpec(1, case.headers[4], plane(case, (2, 3, 2, 3)))]
    structures = read(case, tmp_path, SegSpec({1: "A"}, frames, series=""))
    assert structures.changes == (
        "the SEG names no series; it was accepted by its frame of reference",
    )


# --- SEGs that cannot be read


def off_by(case: Case, share: float, along: int) -> list[float]:
    """Return the position of slice 4, moved by a share of a voxel along one of the grid's axes."""
    step = case.grid.affine_ras[:3, along] * [-1, -1, 1]
    start = np.array(case.headers[4].ImagePositionPatient, float)
    return [float(v) for v in start + share * step]


@pytest.mark.parametrize("along", [0, 1, 2])
def test_a_frame_that_lies_off_the_slices_is_refused(
    case: Case, tmp_path: Path, along: int
) -> None:
    frames = [
        FrameSpec(1, case.headers[3], plane(case, (2, 3, 2, 3))),
        FrameSpec(1, case.headers[4], plane(case, (2, 3, 2, 3)), position=off_by(case, 0.3, along)),
    ]
    message = (
        r"case7: frame 2 \('A'\) does not lie on the CT's voxels; it is off by up to 0\.30 voxels"
    )
    with pytest.raises(GeometryError, match=message):
        read(case, tmp_path, SegSpec({1: "A"}, frames))


def test_a_frame_of_another_pixel_size_is_refused(case: Case, tmp_path: Path) -> None:
    frame = FrameSpec(1, case.headers[4], plane(case, (2, 3, 2, 3)))
    write_viewer_seg(tmp_path / "coarse.dcm", SegSpec({1: "A"}, [frame]))
    dataset = pydicom.dcmread(tmp_path / "coarse.dcm")
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [4.0, 3.0]
    dataset.save_as(tmp_path / "coarse.dcm")
    with pytest.raises(GeometryError, match=r"frame 1 \('A'\) .* it is off in size or direction"):
        read_seg(tmp_path / "coarse.dcm", case.headers, case.grid, image_id="case7")


def test_a_frame_beyond_the_scans_end_is_refused(case: Case, tmp_path: Path) -> None:
    frame = FrameSpec(1, case.headers[4], plane(case, (2, 3, 2, 3)), position=off_by(case, 16.0, 2))
    with pytest.raises(GeometryError, match=r"frame 1 \('A'\) marks voxels outside the CT"):
        read(case, tmp_path, SegSpec({1: "A"}, [frame]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"series": "1.2.3.4"}, r"case7: the SEG was drawn on series 1\.2\.3\.4, the CT is series"),
        (
            {"frame_of_reference": "1.2.3.4"},
            r"case7: the SEG lies in the frame of reference 1\.2\.3\.4",
        ),
        ({"series": "", "frame_of_reference": ""}, "case7: the SEG names neither a series nor"),
    ],
)
def test_a_seg_of_another_scan_is_refused(
    case: Case, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    frame = FrameSpec(1, case.headers[4], plane(case, (2, 3, 2, 3)))
    with pytest.raises(GeometryError, match=message):
        read(case, tmp_path, SegSpec({1: "A"}, [frame], **changes))


def test_two_segments_of_one_name_are_refused(case: Case, tmp_path: Path) -> None:
    frames = [FrameSpec(n, case.headers[4], plane(case, (2, 3, 2, 3))) for n in (1, 2)]
    with pytest.raises(LabelError, match="case7: two segments are called 'A'"):
        read(case, tmp_path, SegSpec({1: "A", 2: "A"}, frames))


def test_a_frame_of_a_segment_that_is_not_there_is_refused(case: Case, tmp_path: Path) -> None:
    frames = [FrameSpec(3, case.headers[4], plane(case, (2, 3, 2, 3)))]
    with pytest.raises(
        LabelError, match=r"frames of the SEG belong to the segments \[3\], which it does not"
    ):
        read(case, tmp_path, SegSpec({1: "A"}, frames))


def test_an_rtstruct_is_refused_as_a_seg(case: Case, tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "rt.dcm", case.label, case.headers, ObjectProvenance())
    with pytest.raises(LabelError, match="case7: the file's modality is RTSTRUCT; SEG expected"):
        read_seg(tmp_path / "rt.dcm", case.headers, case.grid, image_id="case7")


def test_truncated_pixels_are_refused(case: Case, tmp_path: Path) -> None:
    write_seg(tmp_path / "short.dcm", case.label, case.headers, ObjectProvenance())
    dataset = pydicom.dcmread(tmp_path / "short.dcm")
    dataset.PixelData = dataset.PixelData[:-100]
    dataset.save_as(tmp_path / "short.dcm")
    with pytest.raises(LabelError, match="case7: the SEG is truncated"):
        read_seg(tmp_path / "short.dcm", case.headers, case.grid, image_id="case7")


@pytest.mark.parametrize("keep", [0, 100, 300, 3000, 20000])
def test_a_damaged_file_is_refused(case: Case, tmp_path: Path, keep: int) -> None:
    write_seg(tmp_path / "whole.dcm", case.label, case.headers, ObjectProvenance())
    (tmp_path / "part.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes()[:keep])
    with pytest.raises(LabelError, match="case7: "):
        read_seg(tmp_path / "part.dcm", case.headers, case.grid, image_id="case7")


# --- dcmqi and highdicom


def by_dcmqi(case: Case, folder: Path, *options: str) -> Path:
    """Return a SEG that dcmqi made of the values 7 and 1 of the case's label, in that order."""
    array = np.where(np.isin(case.expected, (1, 7)), case.expected, 0).astype(np.uint8)
    sitk.WriteImage(to_sitk(array, case.grid), str(folder / "label.nrrd"))
    segments = [_dcmqi_segment(name) for name in ("Parotid_R", "Brainstem")]
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "ContentCreatorName": "x",
                "SeriesDescription": "x",
                "SeriesNumber": "1",
                "InstanceNumber": "1",
                "segmentAttributes": [segments],
            }
        )
    )
    path = folder / "dcmqi.dcm"
    changes = ["--inputImageList", str(folder / "label.nrrd"), "--inputMetadata", str(folder / "meta.json"),
             "--inputDICOMDirectory", str(case.folder), "--outputDICOM", str(path)]  # fmt: skip
    process = subprocess.run(
        [str(PROGRAMS / "itkimage2segimage"), *changes, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert path.is_file(), process.stdout + process.stderr
    return path


def _dcmqi_segment(name: str) -> dict[str, Any]:
    organ = ORGANS[name]
    return {
        "labelID": LABELS[name],
        "SegmentLabel": name,
        "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": _code("123037004", "Anatomical Structure"),
        "SegmentedPropertyTypeCodeSequence": _code(organ.snomed_code, organ.snomed_meaning),
        "recommendedDisplayRGBValue": list(organ.colour_rgb),
    }


def _code(value: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodeMeaning": meaning, "CodingSchemeDesignator": "SCT"}


@pytest.mark.parametrize(
    "options",
    [
        ("--skip", "1"),
        ("--skip", "0"),
        ("--compress", "deflate"),
        ("--segmentationType", "labelmap"),
    ],
)
def test_a_seg_of_dcmqi_is_read(case: Case, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = by_dcmqi(case, tmp_path, *options)
    structures = read_seg(path, case.headers, case.grid, image_id="case7")
    assert set(structures.masks) == {"Parotid_R", "Brainstem"}
    for name, mask in structures.masks.items():
        np.testing.assert_array_equal(mask, case.expected == LABELS[name], err_msg=name)


def test_a_seg_of_highdicom_without_empty_frames_is_read(case: Case, tmp_path: Path) -> None:
    concept = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    headers = [pydicom.dcmread(str(h.filename)) for h in reversed(case.headers)]
    for header in headers:
        header.PatientName = "A^B"
    mask = (case.expected == LABELS["Parotid_L"])[:, :, ::-1]
    seg = hd.seg.Segmentation(
        headers, np.ascontiguousarray(mask.transpose(2, 1, 0)), hd.seg.SegmentationTypeValues.FRACTIONAL,
        [hd.seg.SegmentDescription(1, "Left parotid", concept, concept, "MANUAL")],
        hd.UID(), 1, hd.UID(), 1, "x", "x", "x", "x",
    )  # fmt: skip
    seg.save_as(tmp_path / "hd.dcm")
    assert seg.NumberOfFrames < len(headers)
    structures = read_seg(tmp_path / "hd.dcm", case.headers, case.grid, image_id="case7")
    np.testing.assert_array_equal(
        structures.masks["Left parotid"], case.expected == LABELS["Parotid_L"]
    )
