from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from lib.errors import ScanError
from lib.imaging.dicom_files import read_dicom
from lib.imaging.dicom_pixels import pixel_layout, slice_hu
from lib.imaging.quantities import FloatArray
from lib.imaging.scans import read_ct
from tests.imaging.series_files import phantom_series, put
from tests.phantoms import make_ct

SLICE = 7
"""Slice of the phantom with body, bone and air."""
NATIVE = ["explicit", "implicit", "big endian", "deflated"]
COMPRESSED = ["RLE", "JPEG", "JPEG-LS", "JPEG2000"]
CODECS = [*NATIVE, *COMPRESSED]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One slice of the phantom in each transfer syntax."""
    folder = phantom_series(tmp_path_factory.mktemp("series"))
    source = folder / f"ct_{SLICE + 1:04d}.dcm"
    return {codec: write_as(source, codec, folder / f"{codec}.dcm") for codec in CODECS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes its slice."""
    return tmp_path / "slice.dcm"


def read(path: Path) -> FloatArray:
    """Return the slice in a file, `(Y, X)`, in HU."""
    header = read_dicom(path)
    return np.asarray(slice_hu(header, pixel_layout(header, "case7"), "case7"))


def refusal(path: Path) -> str:
    """Return why the slice is refused; empty if it is read."""
    try:
        read(path)
    except ScanError as error:
        return str(error)
    return ""


def expected_hu() -> FloatArray:
    return np.asarray(make_ct().array_hu[:, :, SLICE].T)


def compress_by_itk(dataset: Any, codec: str, scratch: Path) -> None:
    """Compress the pixels as GDCM does: JPEG (lossless) or JPEG2000 (lossless)."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    writer.SetFileName(str(scratch / "one.dcm"))
    writer.Execute(sitk.GetImageFromArray(dataset.pixel_array[None].astype(np.int16)))
    other = pydicom.dcmread(scratch / "one.dcm")
    dataset.file_meta.TransferSyntaxUID = other.file_meta.TransferSyntaxUID
    dataset.PixelData = other.PixelData
    dataset["PixelData"].is_undefined_length = True


def write_as(source: Path, codec: str, path: Path) -> Path:
    """Write the slice of `source` to `path` in another transfer syntax."""
    native = {
        "implicit": ImplicitVRLittleEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
        "big endian": ExplicitVRBigEndian,
    }
    dataset: Any = pydicom.dcmread(source)
    if codec in native:
        little = dataset.pixel_array.astype("<i2")
        dataset.PixelData = (little.astype(">i2") if codec == "big endian" else little).tobytes()
        dataset.file_meta.TransferSyntaxUID = native[codec]
        dataset = _reencoded(dataset)
    elif codec in ("RLE", "JPEG-LS"):
        dataset.compress(RLELossless if codec == "RLE" else JPEGLSLossless)
    elif codec != "explicit":
        compress_by_itk(dataset, codec, path.parent)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def change(source: Path, path: Path, edit: Callable[[Any], object]) -> Path:
    """Write the slice of `source` to `path` after `edit(dataset)`."""
    dataset = pydicom.dcmread(source)
    edit(dataset)
    dataset.save_as(path)
    return path


def frame_of(dataset: Any) -> bytes:
    return b"".join(generate_frames(dataset.PixelData, number_of_frames=1))


def _reencoded(dataset: Any) -> Any:
    """Return the data set without its encoding, so that its transfer syntax decides."""
    copy = pydicom.Dataset()
    copy.update(dataset)
    copy.file_meta = dataset.file_meta
    return copy


@pytest.mark.parametrize("codec", CODECS)
def test_every_transfer_syntax_gives_the_same_pixels(files: dict[str, Path], codec: str) -> None:
    np.testing.assert_array_equal(read(files[codec]), expected_hu())
    # Another reader sees the phantom in these files: they are valid.
    image = sitk.ReadImage(str(files[codec]), imageIO="GDCMImageIO")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0], expected_hu())


@pytest.mark.parametrize("codec", ["deflated", *COMPRESSED])
def test_a_series_is_read_in_a_reader_process_in_each_transfer_syntax(
    tmp_path: Path, codec: str
) -> None:
    folder = phantom_series(tmp_path / "series")
    for source in sorted(folder.iterdir()):
        write_as(source, codec, source)
    (folder / "one.dcm").unlink(missing_ok=True)
    np.testing.assert_array_equal(read_ct(folder).array_hu, make_ct().array_hu)


@pytest.mark.parametrize("codec", CODECS)
def test_padding_is_replaced_in_each_transfer_syntax(
    files: dict[str, Path], path: Path, codec: str
) -> None:
    """Air of -1000 HU, outside the phantom's body, is 24 in its stored values."""
    change(files[codec], path, lambda d: d.add_new("PixelPaddingValue", "US", 24))
    expected = expected_hu()
    np.testing.assert_array_equal(read(path), np.where(expected == -1000, -1024, expected))


# --- stored values


@pytest.mark.parametrize(
    "layout",
    [(16, 15, 1, 16), (12, 11, 0, 16), (12, 11, 1, 16), (12, 15, 0, 16), (13, 12, 1, 16), (16, 15, 1, 32),
     (32, 31, 1, 32), (16, 15, 0, 32)],
)  # fmt: skip
def test_only_the_stored_bits_are_the_value(
    files: dict[str, Path], path: Path, layout: tuple[int, int, int, int]
) -> None:
    """Bits beside the value hold overlays, here ones (PS3.5 section 8.1.1)."""
    bits, high_bit, representation, allocated = layout
    below, intercept = high_bit + 1 - bits, 1000 if representation else -1000

    def store(dataset: Any) -> None:
        values = expected_hu().astype(np.int64) - intercept  # -2000 to -300, or 0 to 1700
        mask = (1 << bits) - 1
        ones = ((1 << allocated) - 1) & ~(mask << below)
        raw = ((values & mask) << below) | ones
        dataset.PixelData = raw.astype(f"<u{allocated // 8}").tobytes()
        put(BitsAllocated=allocated, BitsStored=bits, HighBit=high_bit, PixelRepresentation=representation,
            RescaleIntercept=str(intercept))(0, dataset)  # fmt: skip

    np.testing.assert_array_equal(read(change(files["explicit"], path, store)), expected_hu())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"BitsStored": 99}, "BitsStored 99"),
        ({"BitsStored": 0}, "no usable BitsStored"),
        ({"HighBit": 16}, "HighBit 16"),
        ({"HighBit": 3}, "HighBit 3"),
        ({"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11}, "BitsAllocated 12"),
        ({"BitsAllocated": 64}, "BitsAllocated 64"),
        ({"PixelRepresentation": 2}, "PixelRepresentation 2"),
        ({"BitsAllocated": None}, "no usable BitsAllocated"),
        ({"PixelRepresentation": None}, "no usable PixelRepresentation"),
        ({"Rows": 12000, "Columns": 12000}, "12000 rows and 12000 columns; at most 4096"),
        ({"Rows": 65535}, "65535 rows"),
    ],
)
def test_an_impossible_layout_is_refused(
    files: dict[str, Path], path: Path, values: dict[str, object], message: str
) -> None:
    reason = refusal(change(files["explicit"], path, lambda d: put(**values)(0, d)))
    assert reason.startswith("case7: slice.dcm has ")
    assert message in reason


# --- too few or too many pixels


def fill_memory(pattern: int) -> None:
    """Fill free memory of the size of a slice with a pattern: an uninitialised buffer then shows it."""
    sizes = (320, 640, 1280, 2560)
    blocks = [np.full(size, pattern, np.uint8) for size in sizes for _ in range(200)]
    del blocks


@pytest.mark.parametrize("keep", [0.016, 0.5, 0.97])
@pytest.mark.parametrize("codec", CODECS)
def test_too_few_pixels_are_refused(
    files: dict[str, Path], path: Path, codec: str, keep: float
) -> None:
    def cut(dataset: Any) -> None:
        content = dataset.PixelData if codec in NATIVE else frame_of(dataset)
        rest = content[: max(2, int(len(content) * keep) // 2 * 2)]
        dataset.PixelData = rest if codec in NATIVE else encapsulate([rest])

    change(files[codec], path, cut)
    fill_memory(0x5A)
    assert refusal(path).startswith("case7: slice.dcm")


@pytest.mark.parametrize("codec", CODECS)
def test_too_many_pixels_are_refused(files: dict[str, Path], path: Path, codec: str) -> None:
    def double(dataset: Any) -> None:
        if codec in NATIVE:
            dataset.PixelData += dataset.PixelData
        else:
            dataset.PixelData = encapsulate([frame_of(dataset) * 2])

    assert refusal(change(files[codec], path, double)).startswith("case7: slice.dcm")


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("size", [{"Rows": 32}, {"Columns": 22}, {"Rows": 14}])
def test_compressed_pixels_of_another_size_are_refused(
    files: dict[str, Path], path: Path, codec: str, size: dict[str, int]
) -> None:
    change(files[codec], path, lambda d: put(**size)(0, d))
    fill_memory(0x5A)
    assert refusal(path).startswith("case7: slice.dcm")


@pytest.mark.parametrize("codec", COMPRESSED)
def test_damaged_compressed_pixels_never_show_other_memory(
    files: dict[str, Path], path: Path, codec: str
) -> None:
    """What a damaged slice is read as depends on the slice only, if it is read at all."""
    rng = np.random.default_rng(0)
    whole = files[codec].read_bytes()
    start = whole.index(b"\xe0\x7f\x10\x00")
    for _ in range(25):
        damaged = bytearray(whole)
        for at in rng.integers(start + 20, len(whole) - 10, 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        results = []
        for pattern in (0x5A, 0xA5):
            fill_memory(pattern)
            results.append(refusal(path) or read(path).tobytes())
        assert results[0] == results[1]


def test_a_slice_without_pixels_is_refused(files: dict[str, Path], path: Path) -> None:
    change(files["explicit"], path, lambda d: put(PixelData=None)(0, d))
    assert "slice.dcm has no readable pixels" in refusal(path)


def test_an_unusual_compression_is_refused(files: dict[str, Path], path: Path) -> None:
    def relabel(dataset: Any) -> None:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2
        dataset.PixelData = encapsulate([b"\0\0\1\xb3" + bytes(300)])

    change(files["RLE"], path, relabel)
    assert "slice.dcm: its compressed pixels are of an unusual compression" in refusal(path)
