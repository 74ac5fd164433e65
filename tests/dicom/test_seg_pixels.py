"""Pixels of a SEG in every transfer syntax: read right, and refused if they are not as many as stated."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from lib.dicom.seg import read_seg
from lib.errors import LabelError
from tests.dicom.organ_phantom import Case, make_case
from tests.dicom.seg_files import FrameSpec, Plane, SegSpec, plane, voxels, write_viewer_seg

NATIVE = (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("seg_pixels") / "ct")


def write_frames(case: Case, path: Path, syntax: UID, kind: str = "LABELMAP") -> Any:
    """Write two frames of one segment, 4 and 1 pixels, and return the file's content."""
    planes = [plane(case, (2, 3, 3, 4)), plane(case, (9, 9, 9, 9))]
    frames = [FrameSpec(1, case.headers[z], p) for z, p in zip((4, 5), planes, strict=True)]
    write_viewer_seg(path, SegSpec({1: "A"}, frames, kind=kind))
    dataset = pydicom.dcmread(path)
    if syntax == JPEG2000Lossless:
        dataset.PixelData = encapsulate([jpeg_2000(p) for p in planes])
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax in COMPRESSED:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = syntax in COMPRESSED
    save(dataset, path)
    return dataset


def save(dataset: Any, path: Path) -> None:
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, implicit_vr=False, little_endian=True, force_encoding=True)


def jpeg_2000(pixels_yx: Plane) -> bytes:
    """Return a lossless codestream; pydicom has no encoder of its own."""
    content = BytesIO()
    Image.fromarray(pixels_yx).save(content, "JPEG2000", irreversible=False, no_jp2=True)
    return content.getvalue()


def fill_memory() -> None:
    """Leave freed memory full of ones, which an uninitialised mask would show."""
    blocks = [np.full(size, 1, np.uint8) for size in (1920, 3840, 7680, 48 * 40 * 2, 2**16) * 20]
    del blocks


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=lambda syntax: syntax.keyword)
def test_every_transfer_syntax_is_read(case: Case, tmp_path: Path, syntax: UID) -> None:
    write_frames(case, tmp_path / "x.dcm", syntax)
    structures = read_seg(tmp_path / "x.dcm", case.headers, case.grid, image_id="case7")
    expected = [[2, 3, 4], [2, 4, 4], [3, 3, 4], [3, 4, 4], [9, 9, 5]]
    assert voxels(structures, "A") == expected


def native(change: Callable[[bytes], bytes]) -> Callable[[Any], bytes]:
    return lambda dataset: change(dataset.PixelData)


def compressed(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Any], bytes]:
    def pixels(dataset: Any) -> bytes:
        return encapsulate(change(list(generate_frames(dataset.PixelData, number_of_frames=2))))

    return pixels


CHANGES: dict[str, tuple[tuple[UID, ...], Callable[[Any], bytes]]] = {
    "ten bytes": (NATIVE, native(lambda pixels: pixels[:10])),
    "two bytes fewer": (NATIVE, native(lambda pixels: pixels[:-2])),
    "four bytes more": (NATIVE, native(lambda pixels: pixels + bytes(4))),
    "a frame fewer": (COMPRESSED, compressed(lambda frames: frames[:1])),
    "a frame more": (COMPRESSED, compressed(lambda frames: [*frames, frames[0]])),
    "half a frame": (COMPRESSED, compressed(lambda f: [f[0], f[1][: len(f[1]) // 2]])),
    "an empty frame": (COMPRESSED, compressed(lambda frames: [frames[0], b"\0\0"])),
}


@pytest.mark.parametrize(
    ("syntax", "change"),
    [(s, change) for syntaxes, change in CHANGES.values() for s in syntaxes],
    ids=[f"{name}-{s.keyword}" for name, (syntaxes, _) in CHANGES.items() for s in syntaxes],
)
def test_fewer_or_more_pixels_than_stated_are_refused(
    case: Case, tmp_path: Path, syntax: UID, change: Callable[[Any], bytes]
) -> None:
    dataset = write_frames(
        case, tmp_path / "x.dcm", syntax, "BINARY" if syntax in NATIVE else "LABELMAP"
    )
    dataset.PixelData = change(dataset)
    save(dataset, tmp_path / "x.dcm")
    fill_memory()
    with pytest.raises(LabelError, match=r"case7: .*(pixels|damaged)"):
        read_seg(tmp_path / "x.dcm", case.headers, case.grid, image_id="case7")


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.keyword)
@pytest.mark.parametrize("rows", [30, 50])
def test_frames_of_another_size_than_stated_are_refused(
    case: Case, tmp_path: Path, syntax: UID, rows: int
) -> None:
    dataset = write_frames(case, tmp_path / "x.dcm", syntax)
    dataset.Rows = rows  # the frames have 40
    save(dataset, tmp_path / "x.dcm")
    fill_memory()
    with pytest.raises(LabelError, match=r"case7: .*(pixels|damaged)"):
        read_seg(tmp_path / "x.dcm", case.headers, case.grid, image_id="case7")


def test_an_unknown_compression_is_refused_by_its_name(case: Case, tmp_path: Path) -> None:
    dataset = write_frames(case, tmp_path / "x.dcm", RLELossless)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.103")
    save(dataset, tmp_path / "x.dcm")
    with pytest.raises(LabelError, match=r"case7: the SEG is compressed as .*, which this program"):
        read_seg(tmp_path / "x.dcm", case.headers, case.grid, image_id="case7")
