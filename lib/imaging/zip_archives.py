"""Zip files that people send: unpacked without a way out of the folder, and not without bound."""

import shutil
import zipfile
from pathlib import Path

from lib.errors import ScanError

MAX_UNPACKED_BYTES = 2 * 2**30
MAX_FILES = 10_000


def unpack(archive: Path, folder: Path, image_id: str) -> Path:
    """Return `folder` with the files of a zip, laid flat: folders within the zip are of no meaning here.

    Raises:
        ScanError: If it is no zip, is damaged, or unpacks to more than a CT could be.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            size = sum(member.file_size for member in members)
            if size > MAX_UNPACKED_BYTES or len(members) > MAX_FILES:
                raise ScanError(
                    f"{image_id}: the zip unpacks to {len(members)} files of {size / 2**20:.0f} MiB; "
                    f"expected at most {MAX_FILES} files of {MAX_UNPACKED_BYTES / 2**20:.0f} MiB"
                )
            folder.mkdir()
            for number, member in enumerate(members):
                # Numbered names: what the zip calls a file never becomes a path (defect 11).
                target = folder / f"{number:05d}{Path(member.filename).suffix.lower()[:8]}"
                with opened.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, RuntimeError, OSError) as error:
        raise ScanError(f"{image_id}: the zip cannot be unpacked ({error})") from error
    return folder
