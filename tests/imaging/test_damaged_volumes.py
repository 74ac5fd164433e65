"""Volume files that are damaged, or built to harm the server: each is refused, and nothing is made up."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.errors import OrganNetError, ScanError
from lib.imaging.geometry import Grid, to_sitk
from lib.imaging.scans import parse_ct, read_ct
from lib.imaging.volume_headers import MAX_HEADER_BYTES
from lib.imaging.volume_reading import read_volume
from lib.isolation.reader_pool import readers

Array = np.ndarray[Any, np.dtype[Any]]

GRID = Grid((12, 11, 10), ((-1.0, 0.0, 0.0, 5.0), (0.0, -1.0, 0.0, 6.0), (0.0, 0.0, 2.5, -7.0)))
RNG = np.random.default_rng(15)
VOXELS = np.where(
    RNG.random(GRID.shape_vox) < 0.6,
    RNG.integers(-150, 150, GRID.shape_vox),
    RNG.integers(-1024, 1500, GRID.shape_vox),
).astype(np.int16)
"""Mostly soft tissue, as in a patient."""
FORMATS = {
    "raw.mha": False, "deflated.mha": True, "raw.nrrd": False, "deflated.nrrd": True,
    "plain.nii": False, "packed.nii.gz": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One good file of each kind, written by SimpleITK and nibabel."""
    folder = tmp_path_factory.mktemp("good")
    for name, is_compressed in FORMATS.items():
        if ".nii" in name:
            nib.save(nib.Nifti1Image(VOXELS, GRID.affine_ras), folder / name)  # type: ignore[no-untyped-call]
        else:
            sitk.WriteImage(to_sitk(VOXELS, GRID), str(folder / name), is_compressed)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def fill_freed_memory_with_a_pattern() -> None:
    """Leave the pattern 0x5a in memory that the next arrays get."""
    blocks = [np.full(VOXELS.nbytes + extra, 0x5A, np.uint8) for extra in range(0, 4096, 64)]
    del blocks


# --- fewer or more voxels than the header states


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("missing", [1, 2, 100, 1300])
def test_file_without_its_last_bytes_is_refused(
    tmp_path: Path, files: dict[str, bytes], name: str, missing: int
) -> None:
    path = put(tmp_path, name, files[name][:-missing])
    for _ in range(5):
        fill_freed_memory_with_a_pattern()
        with pytest.raises(ScanError, match=r"case7: .*truncated"):
            parse_ct(path, "case7")


@pytest.mark.parametrize("name", ["raw.mha", "raw.nrrd", "plain.nii"])
@pytest.mark.parametrize(
    ("extra", "is_good"),
    [(b"\0", True), (b"\n", True), (b"\0" * 512, True), (b"\1", False), (b"\0" * 5000, False)],
)
def test_bytes_after_the_voxels_are_refused_unless_they_are_padding(
    tmp_path: Path, files: dict[str, bytes], name: str, extra: bytes, *, is_good: bool
) -> None:
    path = put(tmp_path, name, files[name] + extra)
    if is_good:
        np.testing.assert_array_equal(parse_ct(path, "case7").array_hu, VOXELS)
    else:
        with pytest.raises(ScanError, match="case7: the file holds more voxels than the 1320"):
            parse_ct(path, "case7")


def test_compressed_voxels_beyond_the_header_are_refused_without_unpacking_them(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    bomb = gzip.compress(gzip.decompress(files["packed.nii.gz"]) + bytes(2**26))
    with pytest.raises(ScanError, match="more voxels"):
        parse_ct(put(tmp_path, "bomb.nii.gz", bomb), "case7")


def test_damaged_compression_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name in ("deflated.mha", "deflated.nrrd", "packed.nii.gz"):
        content = bytearray(files[name])
        content[-200] ^= 0xFF
        with pytest.raises(ScanError, match=r"case7: .* damaged"):
            parse_ct(put(tmp_path, name, bytes(content)), "case7")


# --- every encoding that is read, compared with SimpleITK's or the numbers themselves


def nrrd(content: bytes, *fields: str) -> bytes:
    head = ["NRRD0004", "dimension: 3", "space: left-posterior-superior", "sizes: 12 11 10",
            "space directions: (1,0,0) (0,1,0) (0,0,2.5)", "space origin: (0,0,0)", *fields]  # fmt: skip
    return "\n".join(head).encode() + b"\n\n" + content


def mha(content: bytes, *fields: str) -> bytes:
    head = ["ObjectType = Image", "NDims = 3", "TransformMatrix = 1 0 0 0 1 0 0 0 1",
            "Offset = 0 0 0", "ElementSpacing = 1 1 2.5", "DimSize = 12 11 10", *fields,
            "ElementDataFile = LOCAL"]  # fmt: skip
    return "\n".join(head).encode() + b"\n" + content


PLAIN = VOXELS.tobytes(order="F")
SWAPPED = VOXELS.astype(">i2").tobytes(order="F")
TEXT = " ".join(map(str, VOXELS.ravel(order="F"))).encode()


@pytest.mark.parametrize(
    "content",
    [
        nrrd(PLAIN, "type: short", "endian: little", "encoding: raw"),
        nrrd(SWAPPED, "type: int16", "endian: big", "encoding: raw"),
        nrrd(gzip.compress(SWAPPED), "type: short", "endian: big", "encoding: gzip"),
        nrrd(TEXT + b"\n", "type: short", "encoding: ascii"),
        nrrd(
            b"skipped\n" + PLAIN, "type: short", "endian: little", "encoding: raw", "line skip: 1"
        ),
        nrrd(b"??" + PLAIN, "type: short", "endian: little", "encoding: raw", "byte skip: -1"),
        nrrd(PLAIN, "type: short", "endian: little", "encoding: raw").replace(b"\n", b"\r\n", 7),
    ],
    ids=["raw", "big", "gzip", "text", "line skip", "byte skip", "line ends"],
)
def test_encodings_of_nrrd(tmp_path: Path, content: bytes) -> None:
    if b"\r\n" in content[:20]:
        content = content.replace(b"encoding: raw\n\n", b"encoding: raw\r\n\r\n", 1)
    ct = parse_ct(put(tmp_path, "case7.nrrd", content), "case7")
    np.testing.assert_array_equal(ct.array_hu, VOXELS)
    assert ct.grid.spacing_mm == (1, 1, 2.5)


@pytest.mark.parametrize(
    "content",
    [
        mha(PLAIN, "BinaryData = True", "ElementType = MET_SHORT"),
        mha(SWAPPED, "BinaryData = True", "BinaryDataByteOrderMSB = True", "ElementType = MET_SHORT"),
        mha(SWAPPED, "BinaryData = True", "ElementByteOrderMSB = True", "ElementType = MET_SHORT"),
        mha(zlib.compress(PLAIN), "BinaryData = True", "CompressedData = True", "ElementType = MET_SHORT"),
        mha(TEXT, "BinaryData = False", "ElementType = MET_SHORT"),
        mha(TEXT, "ElementType = MET_SHORT"),
        mha(VOXELS.astype("<i4").tobytes("F"), "BinaryData = True", "ElementType = MET_INT"),
        mha(VOXELS.astype("<f4").tobytes("F"), "BinaryData = True", "ElementType = MET_FLOAT"),
        mha(VOXELS.astype("<f8").tobytes("F"), "BinaryData = True", "ElementType = MET_DOUBLE"),
    ],
    ids=["raw", "big", "big by another name", "deflated", "text", "text by default", "int", "float", "double"],
)  # fmt: skip
def test_encodings_of_metaimage(tmp_path: Path, content: bytes) -> None:
    ct = parse_ct(put(tmp_path, "case7.mha", content), "case7")
    np.testing.assert_array_equal(ct.array_hu, VOXELS)
    assert ct.grid.spacing_mm == (1, 1, 2.5)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_types_are_those_of_simpleitk(
    tmp_path: Path, suffix: str, dtype: str, *, is_compressed: bool
) -> None:
    path = tmp_path / f"case7{suffix}"
    sitk.WriteImage(to_sitk(VOXELS.astype(dtype), GRID), str(path), is_compressed)
    array, grid = read_volume(path, "case7")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == expected.dtype
    assert grid.is_same_as(GRID)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", ">i4", "f4", ">f8", "i8"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.5, 3), (2.5, 0)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_voxels_are_those_of_nibabel(
    tmp_path: Path, suffix: str, dtype: str, slope: float, intercept: float
) -> None:
    header: Any = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")  # type: ignore[no-untyped-call]
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(GRID.shape_vox)
    header.set_sform(GRID.affine_ras, code=1)
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, intercept, 352
    header["magic"] = b"n+1"
    stored = np.abs(VOXELS).astype(dtype).tobytes(order="F")
    content = header.binaryblock + bytes(4) + stored
    path = put(tmp_path, f"c{suffix}", gzip.compress(content) if suffix == ".nii.gz" else content)
    array, _ = read_volume(path, "case7")
    expected = np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == expected.dtype.newbyteorder("=")


# --- headers


WRONG_HEADERS: dict[str, Callable[[], bytes]] = {
    "99 axes": lambda: mha(PLAIN, "BinaryData = True", "ElementType = MET_SHORT").replace(
        b"NDims = 3", b"NDims = 99"
    ),
    "no axes": lambda: mha(PLAIN, "BinaryData = True", "ElementType = MET_SHORT").replace(
        b"NDims = 3", b"NDims = -1"
    ),
    "fewer sizes than axes": lambda: mha(
        PLAIN, "BinaryData = True", "ElementType = MET_SHORT"
    ).replace(b"12 11 10", b"12 11"),
    "a size of 0": lambda: mha(PLAIN, "BinaryData = True", "ElementType = MET_SHORT").replace(
        b"12 11 10", b"12 0 10"
    ),
    "sizes beyond 32 bits": lambda: mha(
        PLAIN, "BinaryData = True", "ElementType = MET_SHORT"
    ).replace(b"12 11 10", b"65536 65536 65536"),
    "an unknown type": lambda: mha(PLAIN, "BinaryData = True", "ElementType = MET_STRING"),
    "no type": lambda: mha(PLAIN, "BinaryData = True"),
    "several channels": lambda: mha(
        PLAIN * 3, "BinaryData = True", "ElementType = MET_SHORT", "ElementNumberOfChannels = 3"
    ),
    "a position that is none": lambda: mha(
        PLAIN, "BinaryData = True", "ElementType = MET_SHORT", "HeaderSize = 99999999"
    ),
    "words as voxels": lambda: mha(b"one two three", "ElementType = MET_SHORT"),
    "voxels beyond the type": lambda: mha(b"99999 " * 1320, "ElementType = MET_SHORT"),
}


@pytest.mark.parametrize("kind", WRONG_HEADERS)
def test_wrong_header_is_refused_with_a_reason_before_itk_reads_it(
    tmp_path: Path, kind: str
) -> None:
    path = put(tmp_path, "case7.mha", WRONG_HEADERS[kind]())
    with pytest.raises(ScanError, match=r"case7: .*(again|expected)"):
        read_ct(path)
    assert not readers().refused()


def test_metadata_of_any_length_is_read(tmp_path: Path) -> None:
    content = nrrd(
        PLAIN, "type: short", "endian: little", "encoding: raw", "note:=" + "x" * 500_000
    )
    assert len(content) < MAX_HEADER_BYTES
    np.testing.assert_array_equal(read_ct(put(tmp_path, "case7.nrrd", content)).array_hu, VOXELS)


@pytest.mark.parametrize("name", ["raw.mha", "deflated.nrrd", "packed.nii.gz"])
def test_randomly_damaged_file_is_read_or_refused(
    tmp_path: Path, files: dict[str, bytes], name: str
) -> None:
    random = Random(4711)  # noqa: S311 - not for cryptography
    content = files[name]
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    header = min(len(content), 420)
    for number in range(60):
        damaged = bytearray(content)
        for _ in range(random.choice((1, 2, 8))):
            place = random.randrange(header)
            how = random.randrange(3)
            if how == 0:
                damaged[place] = random.randrange(256)
            elif how == 1:
                del damaged[place : place + random.randrange(1, 30)]
            else:
                damaged[place:place] = random.choice(
                    (b"9", b"-1", b"1e308", b"\0", b"\n", b" " * 300)
                )
        packed = gzip.compress(damaged, 1) if name.endswith(".gz") else bytes(damaged)
        path = put(tmp_path, f"{number:03d}{name[name.index('.') :]}", packed)
        try:
            ct = read_ct(path, image_id="case7")
        except OrganNetError as error:
            assert str(error).startswith("case7: "), error  # noqa: PT017 - most are refused
        else:
            assert ct.array_hu.shape == ct.grid.shape_vox
