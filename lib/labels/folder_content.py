"""Content of one folder, as far as it concerns scans: volume files, folders, DICOM files, and troubles."""

import os
import stat
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib.imaging.dicom_files import DICOM_SUFFIXES
from lib.imaging.formats import SCAN_SUFFIXES, suffix_of
from lib.storage.identifiers import printable

_NOT_LISTED = (".mhd", ".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".gipl", ".nii.bz2", ".nii.xz", ".zip",
               ".tar", ".tgz", ".tar.gz", ".7z", ".rar")  # fmt: skip
"""Suffixes of files that may hold a scan, but are not listed."""
_BY_EFFECTIVE_IDS = os.access in os.supports_effective_ids
_PREFIX_END = 132
"""Number of bytes of the preamble and prefix of a DICOM file (PS3.10 section 7.1)."""

_KIND_NOT_LISTED = (
    f"is of a kind that is not listed; convert it to {', '.join(SCAN_SUFFIXES)}, or unpack it"
)
_LOOSE_SLICE = (
    "is a DICOM file in the studies folder itself; put each series into a folder of its own"
)
_NO_TARGET = "is a link to a file or folder that does not exist"
_NOT_REGULAR = "is not a regular file"
_EMPTY = "is empty (0 bytes); copy it again"

Identity = tuple[int, ...]
"""Numbers of stat(2) that differ when a file or folder changed; empty if there is none."""


@dataclass(slots=True, eq=False)
class Content:
    """The content of one folder; two objects are never equal, so that they can be compared fast."""

    identity: Identity = ()
    is_settled: bool = False
    """Whether `identity` differs after any further change."""
    volumes: list[str] = field(default_factory=list)
    """Volume files that can be read."""
    folders: list[str] = field(default_factory=list)
    dicom_file: str = ""
    """Name of a DICOM file; empty if there is none."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name of an entry that may be a scan -> why it is no image, or cannot be read."""
    is_empty: bool = False
    """Whether the folder has no entries, apart from hidden ones."""
    trouble: str = ""
    """Why the folder, or a slice in it, cannot be read; empty if all can be."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Name of an entry that cannot be read -> reason."""

    def is_like(self, other: "Content") -> bool:
        """Return whether another reading of the folder found the same; then its identity is taken over."""
        if self._found() != other._found():
            return False
        self.identity, self.is_settled, self.troubles = (
            other.identity,
            other.is_settled,
            other.troubles,
        )
        return True

    def _found(self) -> tuple[object, ...]:
        found = (self.volumes, self.folders, self.dicom_file, self.refused, self.trouble)
        return (*found, self.is_empty)

    def is_still_refused(self, folder: Path) -> bool:
        """Return whether each entry that could not be read still cannot be, for the same reason."""
        return all(trouble_of(folder / name) == reason for name, reason in self.troubles.items())


def read_content(
    folder: Path, identity: Identity, *, is_top: bool, checked: Collection[str]
) -> Content:
    """Return the content of a folder.

    Args:
        folder: The folder.
        identity: Its identity, taken before.
        is_top: Whether it is the studies folder itself.
        checked: Volume files that could be read before, and are not tried again.

    Raises:
        OSError: If the folder cannot be listed.
    """
    content = Content(identity)
    others = _sort_entries(folder, content)
    # A reader opens every file in the folder of a series; files in the studies folder itself may be many.
    _find_dicom(folder, [n for n in others if not is_top or _may_be_slice(n)], content)
    if is_top:
        known = frozenset(checked)
        troubles = {n: trouble_of(folder / n) for n in content.volumes if n not in known}
        content.troubles |= {name: trouble for name, trouble in troubles.items() if trouble}
        content.volumes = [n for n in content.volumes if n not in content.troubles]
    _judge(content, is_top=is_top)
    for name in others:
        if _has_suffix(name, _NOT_LISTED) and not (content.dicom_file and _may_be_slice(name)):
            content.refused.setdefault(name, _KIND_NOT_LISTED)
    return content


def with_changes(folder: Path, content: Content, names: Collection[str]) -> Content | None:
    """Return the content of the studies folder after some entries changed; `content` if it is the same.

    Only these entries are looked at. None means that the folder must be read, as one of them is not plainly a
    volume file, a folder, or a file that does not look like a scan.

    Args:
        folder: The studies folder.
        content: Its content before.
        names: Names of the entries; not hidden.
    """
    kinds: dict[str, str] = {}
    for name in names:
        kind = _plain_kind(folder / name)
        if (
            kind is None
            or name in content.refused
            or name in content.troubles
            or name == content.dicom_file
        ):
            return None
        kinds[name] = kind
    volumes = _with_kind(content.volumes, kinds, _VOLUME)
    folders = _with_kind(content.folders, kinds, _FOLDER)
    if volumes is content.volumes and folders is content.folders:
        return content
    return replace(content, volumes=volumes, folders=folders)


_VOLUME, _FOLDER, _OTHER = "volume", "folder", "other"


def _plain_kind(path: Path) -> str | None:
    """Return the kind of an entry of the studies folder; None if it has to be judged with the others."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None if path.is_symlink() else _OTHER
    except OSError:
        return None
    if stat.S_ISDIR(status.st_mode):
        return _FOLDER
    if suffix_of(path) is not None:
        return None if trouble_of(path) else _VOLUME
    return None if _looks_like_scan(path.name) or _may_be_slice(path.name) else _OTHER


def _with_kind(names: list[str], kinds: Mapping[str, str], kind: str) -> list[str]:
    """Return sorted names with those of one kind, and without those of another; `names` if they are equal."""
    result = names
    for name, its_kind in kinds.items():
        place = bisect_left(result, name)
        is_listed = place < len(result) and result[place] == name
        if is_listed != (its_kind == kind):
            result = list(names) if result is names else result
            if is_listed:
                del result[place]
            else:
                result.insert(place, name)
    return result


def _sort_entries(folder: Path, content: Content) -> list[str]:
    """Add the entries of a folder to `volumes`, `folders` and `troubles`; return the other files."""
    others: list[str] = []
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    content.is_empty = not visible
    for entry in visible:
        try:
            if entry.is_dir():
                content.folders.append(entry.name)
            elif entry.is_file():
                (content.volumes if suffix_of(entry.name) else others).append(entry.name)
            elif entry.is_symlink() or _looks_like_scan(entry.name):
                content.troubles[entry.name] = trouble_of(folder / entry.name)
        except OSError as error:
            content.troubles[entry.name] = _cannot_be_read(error)
    return others


def _judge(content: Content, *, is_top: bool) -> None:
    """Set `refused` and `trouble` from the entries that cannot be read."""
    if is_top:
        content.refused |= content.troubles
        if content.dicom_file:
            content.refused[content.dicom_file] = _LOOSE_SLICE
        return
    for name, reason in content.troubles.items():
        # Of a folder of slices each file may be one, and a series without it would be a shorter CT.
        if content.dicom_file or _may_be_slice(name):
            content.trouble = content.trouble or f"holds {printable(name)}, which {reason}"
        else:
            content.refused[name] = reason


def _find_dicom(folder: Path, names: list[str], content: Content) -> None:
    """Set `dicom_file`, and add the files that cannot be read to `troubles`."""
    unreadable: dict[str, str] = {}
    for name in names:
        if name.upper() == "DICOMDIR":
            continue
        path = folder / name
        try:
            if not content.dicom_file or not os.access(
                path, os.R_OK, effective_ids=_BY_EFFECTIVE_IDS
            ):
                is_dicom = _has_dicom_prefix(path)
                content.dicom_file = content.dicom_file or (name if is_dicom else "")
        except OSError as error:
            unreadable[name] = _cannot_be_read(error)
    content.troubles |= {
        name: reason
        for name, reason in unreadable.items()
        if content.dicom_file or _may_be_slice(name)
    }


def trouble_of(path: Path) -> str:
    """Return why a file cannot be read; empty if it can be, or is a folder."""
    trouble = ""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            pass
        elif not stat.S_ISREG(status.st_mode):
            trouble = _NOT_REGULAR
        elif not status.st_size and suffix_of(path):
            trouble = _EMPTY
        else:
            _has_dicom_prefix(path)
    except FileNotFoundError:
        trouble = _NO_TARGET
    except OSError as error:
        trouble = _cannot_be_read(error)
    return trouble


def _has_dicom_prefix(path: Path) -> bool:
    # Opening a FIFO, which may have replaced the file since it was listed, must not block.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return os.read(handle, _PREFIX_END)[128:] == b"DICM"
    finally:
        os.close(handle)


def _cannot_be_read(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error})"


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _may_be_slice(name: str) -> bool:
    _, dot, suffix = name.rpartition(".")
    return not dot or suffix.isdecimal() or _has_suffix(name, (".img", *DICOM_SUFFIXES))


def _looks_like_scan(name: str) -> bool:
    return suffix_of(name) is not None or _has_suffix(name, (*_NOT_LISTED, *DICOM_SUFFIXES))


def identity_of(path: Path) -> Identity:
    """Return the identity of a file or folder; of a folder without its files.

    Raises:
        OSError: If there is none, or it cannot be accessed.
    """
    status = path.stat()
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
