"""Unpacking of zip archives of a DICOM series, from users who are not trusted."""

import io
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lib.errors import ScanError
from lib.storage.storage_errors import storage_trouble

MAX_UNPACKED_BYTES = 2 * 2**30
"""Largest size of the files in a zip, in bytes."""
MAX_FILES = 10_000
"""Largest number of files in a zip."""
MAX_MEMBER_BYTES = 2**30
"""Largest size of one file in a zip; 1,500 slices of 512 x 512 voxels in one DICOM file have 0.8 GiB."""
MAX_RATIO = 100
"""Largest ratio of the unpacked size to that of the zip; a CT has 2 to 5, and 30 if most of it is air."""
RATIO_FREE_BYTES = 64 * 2**20
"""Unpacked size up to which any ratio is accepted: unpacking it takes a moment."""
MAX_DIRECTORY_BYTES = 16 * 2**20
"""Largest size of the list of files in a zip: 10,000 names of more than 1,000 characters."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
"""Compressions that need little memory; LZMA takes as much as the file asks for."""

_SYSTEM_FILES = ("dicomdir", "thumbs.db", "desktop.ini")
_SYSTEM_FOLDER = "__MACOSX"


def unpack_zip(archive: Path, folder: Path, image_id: str) -> Path:
    """Unpack a zip into the new `folder`, without its subfolders, and return `folder`.

    Files of the operating system (`__MACOSX/`, `.DS_Store`, `Thumbs.db`, hidden files) and a DICOMDIR are left
    out.

    The sizes that the zip states are checked before anything is unpacked, and never exceeded: a file that
    is larger is damaged.

    Raises:
        ScanError: If it is not a zip, is damaged or encrypted, or unpacks to more than a CT can contain.
        OSError: If the files cannot be written.
    """
    try:
        with _ZipSource(archive) as source, zipfile.ZipFile(source) as opened:
            if not all(m.filename for m in opened.infolist()):
                raise zipfile.BadZipFile("a file in it has no name")
            members = [
                m for m in opened.infolist() if not m.is_dir() and not _is_system_file(m.filename)
            ]
            _require_size(members, archive.stat().st_size, image_id)
            folder.mkdir()
            for number, member in enumerate(members):
                # Numbered names: a file name from the zip never becomes a path (defect 11).
                target = folder / f"{number:05d}{_suffix(member.filename)}"
                with opened.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, RuntimeError, NotImplementedError,
            ValueError, IndexError, zlib.error, OSError) as error:  # fmt: skip
        # A full disk is no damage of the zip.
        if isinstance(error, ScanError) or storage_trouble(error):
            raise
        raise ScanError(f"{image_id}: the zip cannot be unpacked ({error})") from error
    return folder


class _ZipSource(io.FileIO):
    """A zip whose list of files is not read if it is too long: `zipfile` reads the list at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(
                f"its list of files has {size / 2**20:.0f} MiB, at most {MAX_DIRECTORY_BYTES / 2**20:.0f} MiB "
                "expected"
            )
        return super().read(size) or b""


def _require_size(members: Sequence[zipfile.ZipInfo], archive_bytes: int, image_id: str) -> None:
    """Raise ScanError unless the files of a zip can be those of a CT.

    Args:
        members: The files.
        archive_bytes: Size of the zip. (The compressed sizes in its list can be wrong, or count bytes twice.)
        image_id: For messages.
    """
    size = sum(member.file_size for member in members)
    largest = max((member.file_size for member in members), default=0)
    mib, largest_mib, archive_mib = (n / 2**20 for n in (size, largest, archive_bytes))
    if size > MAX_UNPACKED_BYTES or len(members) > MAX_FILES or largest > MAX_MEMBER_BYTES:
        raise ScanError(
            f"{image_id}: the zip unpacks to {len(members)} files of {mib:.0f} MiB, the largest of "
            f"{largest_mib:.0f} MiB; expected at most {MAX_FILES} files of {MAX_UNPACKED_BYTES / 2**20:.0f} "
            f"MiB, each of at most {MAX_MEMBER_BYTES / 2**20:.0f} MiB"
        )
    if size > RATIO_FREE_BYTES and size > MAX_RATIO * archive_bytes:
        raise ScanError(
            f"{image_id}: the zip of {archive_mib:.1f} MiB unpacks to {mib:.0f} MiB, more than "
            f"{MAX_RATIO} times its size; a CT does not: zip the DICOM files of one series"
        )
    methods = {member.compress_type for member in members} - set(_METHODS)
    if methods:
        numbers = ", ".join(map(str, sorted(methods)))
        raise ScanError(
            f"{image_id}: files in the zip are compressed by method {numbers} (14 is LZMA); deflate expected"
        )


def _is_system_file(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return (
        not parts
        or _SYSTEM_FOLDER in parts
        or parts[-1].startswith(".")
        or parts[-1].lower() in _SYSTEM_FILES
    )


def _suffix(name: str) -> str:
    """Return the suffix of a file in a zip, in lower case and of ASCII letters and digits only."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()[:8]
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() else ""
