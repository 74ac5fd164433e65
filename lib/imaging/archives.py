"""Unpacking of zip archives of a DICOM series, from users who are not trusted."""

import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from lib.errors import ScanError
from lib.storage.storage_errors import storage_trouble

MAX_UNPACKED_BYTES = 2 * 2**30
"""Largest size of the files in a zip, in bytes."""
MAX_FILES = 10_000
"""Largest number of files in a zip."""

_SYSTEM_FILES = ("dicomdir", "thumbs.db", "desktop.ini")
_SYSTEM_FOLDER = "__MACOSX"


def unpack_zip(archive: Path, folder: Path, image_id: str) -> Path:
    """Unpack a zip into the new `folder`, without its subfolders, and return `folder`.

    Files of the operating system (`__MACOSX/`, `.DS_Store`, `Thumbs.db`, hidden files) and a DICOMDIR are left
    out.

    Raises:
        ScanError: If it is not a zip, is damaged or encrypted, or unpacks to more than a CT can contain.
        OSError: If the files cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [
                m for m in opened.infolist() if not m.is_dir() and not _is_system_file(m.filename)
            ]
            size = sum(member.file_size for member in members)
            if size > MAX_UNPACKED_BYTES or len(members) > MAX_FILES:
                raise ScanError(
                    f"{image_id}: the zip unpacks to {len(members)} files of {size / 2**20:.0f} MiB; "
                    f"expected at most {MAX_FILES} files of {MAX_UNPACKED_BYTES / 2**20:.0f} MiB"
                )
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
