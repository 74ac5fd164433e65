"""Damaged zip archives are refused as scans, with the reason; a full disk is no damage."""

import errno
import io
import zipfile
from pathlib import Path

import pytest

from lib.errors import ScanError
from lib.imaging import archives
from lib.imaging.archives import unpack_zip
from tests.small_disks import small_disk


def packed() -> bytearray:
    """Return a zip of one compressed file `a`."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 40)
    return bytearray(target.getvalue())


def without_name() -> bytes:
    content = packed()
    entry = content.index(b"PK\x01\x02")
    content[entry + 28 : entry + 32] = b"\0\0\1\0"  # length of the name 0, of the extra field 1
    return bytes(content)


def with_damaged_stream() -> bytes:
    content = packed()
    content[40:60] = b"\xff" * 20
    return bytes(content)


@pytest.mark.parametrize("make", [without_name, with_damaged_stream])
def test_a_damaged_zip_is_refused(tmp_path: Path, make: object) -> None:
    assert callable(make)
    (tmp_path / "x.zip").write_bytes(make())
    # Python 3.11 itself fails at a file without a name, later versions read it.
    with pytest.raises(ScanError, match="cannot be unpacked"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "unpacked", "x")


def test_a_full_disk_is_not_taken_for_a_damaged_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2 * 2**20))
    with small_disk(tmp_path / "disk", mib=1) as disk, pytest.raises(OSError) as caught:  # noqa: PT011
        unpack_zip(tmp_path / "x.zip", disk / "unpacked", "x")
    assert caught.value.errno == errno.ENOSPC


def zip_of(path: Path, method: int, **sizes: int) -> Path:
    """Write a zip of zeros."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, size in sizes.items():
            archive.writestr(name, bytes(size))
    return path


def with_stated_size(path: Path, size: int) -> Path:
    """Write another unpacked size of the only file into its header and into the list of files."""
    content = bytearray(path.read_bytes())
    for start, field in ((content.index(b"PK\x03\x04"), 22), (content.index(b"PK\x01\x02"), 24)):
        content[start + field : start + field + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        # 5 MiB of zeros take 5 kB.
        (
            2**31,
            "1 files of 2048 MiB, the largest of 2048 MiB; expected at most .* at most 1024 MiB",
        ),
        (2**30, r"the zip of 0\.0 MiB unpacks to 1024 MiB, more than 100 times its size"),
        (2**26 + 1, "unpacks to 64 MiB, more than 100 times"),
    ],
)
def test_a_zip_that_states_more_than_a_ct_is_refused_before_it_is_unpacked(
    tmp_path: Path, stated: int, reason: str
) -> None:
    path = zip_of(tmp_path / "x.zip", zipfile.ZIP_DEFLATED, a=5 * 2**20)
    with pytest.raises(ScanError, match=reason):
        unpack_zip(with_stated_size(path, stated), tmp_path / "unpacked", "x")
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_file_that_is_larger_than_stated_is_not_unpacked_further(
    tmp_path: Path, method: int
) -> None:
    path = zip_of(tmp_path / "x.zip", method, a=5 * 2**20)
    with pytest.raises(ScanError, match="cannot be unpacked"):
        unpack_zip(with_stated_size(path, 1000), tmp_path / "unpacked", "x")
    assert (tmp_path / "unpacked" / "00000").stat().st_size <= 1000


def test_a_small_zip_of_zeros_is_unpacked(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", zipfile.ZIP_DEFLATED, a=5 * 2**20, b=1)
    folder = unpack_zip(path, tmp_path / "unpacked", "x")
    assert sorted(file.stat().st_size for file in folder.iterdir()) == [1, 5 * 2**20]


def test_a_compression_that_may_take_any_memory_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "x.zip", zipfile.ZIP_LZMA, a=1000)
    with pytest.raises(ScanError, match=r"by method 14 .*; deflate expected"):
        unpack_zip(path, tmp_path / "unpacked", "x")


def test_a_list_of_too_many_files_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 70_000)
    path = zip_of(tmp_path / "x.zip", zipfile.ZIP_STORED, **{f"{i}": 0 for i in range(1_600)})
    # An entry has 46 bytes and its name of at most 4 characters.
    with pytest.raises(ScanError, match="its list of files has 0 MiB"):
        unpack_zip(path, tmp_path / "unpacked", "x")
