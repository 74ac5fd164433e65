"""Damaged zip archives are refused as scans, with the reason; a full disk is no damage."""

import errno
import io
import zipfile
from pathlib import Path

import pytest

from lib.errors import ScanError
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
    with pytest.raises(ScanError, match="cannot be unpacked"):
        unpack_zip(tmp_path / "x.zip", tmp_path / "unpacked", "x")


def test_a_full_disk_is_not_taken_for_a_damaged_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(2 * 2**20))
    with small_disk(tmp_path / "disk", mib=1) as disk, pytest.raises(OSError) as caught:  # noqa: PT011
        unpack_zip(tmp_path / "x.zip", disk / "unpacked", "x")
    assert caught.value.errno == errno.ENOSPC
