"""Listing of a studies folder: the images in it, and why other entries are no images.

An image is a volume file in the studies folder itself, or a folder with DICOM files:

- a folder in the studies folder that holds DICOM files, directly or in folders directly in it;
- any folder further inside that holds DICOM files directly, as on a CD (`CD/DICOM/PA1/ST1/SE1`).

`lib.storage.identifiers.image_id_of` makes the ids. What looks like a scan and is no image, an empty folder,
and what cannot be read is refused with a reason: an error of the file system concerns one entry, never the
list. Hidden files, and files that do not look like scans, are ignored.

Only regular files are opened, once as long as their folder does not change, and only to find the prefix of a
DICOM file.
"""

import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib.imaging.formats import SCAN_SUFFIXES, stem_of, suffix_of
from lib.labels.folder_content import (
    Content,
    Identity,
    identity_of,
    read_content,
    trouble_of,
)
from lib.storage.identifiers import image_id_of, printable

LABELS = "labels"
"""Name of the folder of the labels in a studies folder."""
MAX_DEPTH = 12
"""Largest number of folders within each other that are searched for DICOM files."""
SETTLED_S = 2.0
"""Age in s of a folder's last change from which on its time of modification shows every further change."""

_VOLUME_IN_FOLDER = (
    "is a volume file in a folder; move it to the studies folder itself, or import the folder with `organnet "
    "prepare-data`"
)
_EMPTY_FOLDER = "is an empty folder; copy the scan again, or remove it"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image in the studies folder."""

    path: str
    """Path relative to the studies folder."""
    suffix: str
    """Suffix as the file name spells it; empty for the folder of a DICOM series."""

    @property
    def image_id(self) -> str:
        """Id of the image; another entry can have the same one."""
        return image_id_of(self.path.removesuffix(self.suffix))


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The content of a studies folder at one moment."""

    images: Mapping[str, ImageEntry]
    """Image id -> file or folder, sorted by id."""
    refused: Mapping[str, str]
    """Image id, or path relative to the studies folder -> why it is no image, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Entries:
    """What a studies folder holds, before two images with one id are told apart."""

    images: Sequence[ImageEntry]
    inner_volumes: Sequence[str]
    """Volume files in folders, relative to the studies folder: no images of the server."""
    refused: Mapping[str, str]
    """As in `Listing`, without `inner_volumes`."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    key: str
    """Image id that the entry would have; for an entry without one, its path."""
    path: str
    reason: str


class StudiesFolder:
    """The images of a studies folder; thread-safe.

    Args:
        path: The studies folder.
        reserved: Folders in it that are not searched -> reason that is shown if there is such a folder; empty
            to show none.
        harmful: Returns the files and folders that ended a reader and have not changed since -> reason.
    """

    def __init__(
        self,
        path: Path,
        *,
        reserved: Mapping[str, str],
        harmful: Callable[[], Mapping[Path, str]],
    ) -> None:
        self.path = path
        self._reserved = reserved
        self._harmful = harmful
        self._mutex = threading.Lock()
        self._contents: dict[str, Content] = {}
        self._reasons: dict[str, str] = {}
        self._listing = Listing({}, {})

    def listing(self) -> Listing:
        """Return the images as they are now: the same object as long as nothing changed."""
        with self._mutex:
            contents = dict(self._walk("", 0, ()))
            root = self.path.absolute()
            reasons = {
                str(path.relative_to(root)): reason
                for path, reason in self._harmful().items()
                if path.is_relative_to(root)
            }
            if contents != self._contents or reasons != self._reasons:
                self._contents, self._reasons = contents, reasons
                self._listing = self._listed()
            return self._listing

    def entries(self) -> Entries:
        """Return all scans in the folder as they are now, for programs, which also read scans with one id."""
        with self._mutex:
            self._contents = dict(self._walk("", 0, ()))
            images, refusals = self._found()
        volumes = [refusal.path for refusal in refusals if refusal.reason == _VOLUME_IN_FOLDER]
        refused = _by_key([r for r in refusals if r.reason != _VOLUME_IN_FOLDER], taken={})
        return Entries(images, volumes, refused)

    def is_readable(self, image: Path) -> bool:
        """Return whether an image can be read now; if not, the next listing refuses it.

        Args:
            image: The file, of which only the beginning is read, or the folder, whose files are only opened.
        """
        path = str(image.relative_to(self.path))
        with self._mutex:
            if not image.is_dir():
                if not trouble_of(image):
                    return True
                top = self._contents[""]
                others = [name for name in top.volumes if name != path]
                self._contents[""] = replace(top, is_settled=False, volumes=others)
                return False
            folders = self._contents[path].folders if path in self._contents else ()
            parts = [path, *(f"{path}/{name}" for name in folders)]
            closed = [p for p in parts if p in self._contents and self._is_closed(p)]
            for part in closed:
                self._contents[part].is_settled = False
            return not closed

    def _is_closed(self, path: str) -> bool:
        try:
            return bool(read_content(self.path / path, (), is_top=False, checked=()).trouble)
        except OSError:
            return True

    def _walk(
        self, path: str, depth: int, ancestors: tuple[Identity, ...]
    ) -> Iterator[tuple[str, Content]]:
        """Yield the relative path and the content of the folder at `path`, and of the folders in it."""
        content = self._content(path)
        itself = content.identity[:2]
        if itself and itself in ancestors:
            content = Content(trouble="is a link to a folder around it")
        elif depth > MAX_DEPTH:
            content = Content(trouble=f"lies in more than {MAX_DEPTH} folders; move it up")
        last = self._contents.get(path)
        yield path, last if last is not None and last.is_like(content) else content
        for name in content.folders:
            inner = f"{path}/{name}" if path else name
            if inner not in self._reserved:
                yield from self._walk(inner, depth + 1, (*ancestors, itself))

    def _content(self, path: str) -> Content:
        """Return the content of a folder, which is read unless it is known and unchanged."""
        folder = self.path / path
        last = self._contents.get(path, Content())
        try:
            identity = identity_of(folder)
            if last.is_settled and last.identity == identity and last.is_still_refused(folder):
                return last
            # The time is taken first: a change during the reading must not count as seen.
            is_settled = time.time() - folder.stat().st_mtime > SETTLED_S
            content = read_content(folder, identity, is_top=not path, checked=last.volumes)
        except (FileNotFoundError, NotADirectoryError):
            return Content(trouble="" if path else "is missing")
        except OSError as error:
            return Content(trouble=f"cannot be read ({error.strerror or error})")
        content.is_settled = is_settled
        return content

    def _listed(self) -> Listing:
        found, refusals = self._found()
        images: dict[str, ImageEntry] = {}
        for entry in sorted(found, key=_precedence):
            image_id = entry.image_id
            other = images.setdefault(image_id, entry)
            if other is not entry:
                reason = f"has the image id {image_id}, as {printable(other.path)} has; rename one of them"
                refusals.append(_Refusal(printable(entry.path), entry.path, reason))
        refused = _by_key(refusals, taken=images)
        for image_id, entry in list(images.items()):
            if entry.path in self._reasons:
                del images[image_id]
                refused[image_id] = self._reasons[entry.path]
        return Listing(dict(sorted(images.items())), dict(sorted(refused.items())))

    def _found(self) -> tuple[list[ImageEntry], list[_Refusal]]:
        found = [ImageEntry(n, n.removeprefix(stem_of(n))) for n in self._contents[""].volumes]
        refusals = list(self._visit("", 0, found, is_in_image=False))
        return found, refusals

    def _visit(
        self, path: str, depth: int, found: list[ImageEntry], *, is_in_image: bool
    ) -> Iterator[_Refusal]:
        """Append the images in a folder to `found`, and yield what is refused.

        Args:
            path: The folder.
            depth: Number of folders on the path; 0 for the studies folder.
            found: The images.
            is_in_image: Whether the folder around it is an image, and its slices belong to that.
        """
        content = self._contents.get(path)
        if content is None:
            if self._reserved.get(path):
                yield _Refusal(path, path, self._reserved[path])
            return
        inner = [f"{path}/{name}" if path else name for name in content.folders]
        parts = [content, *(self._contents[p] for p in inner if p in self._contents)]
        with_slices = parts if depth == 1 else parts[:1]
        is_image = depth > 0 and not is_in_image and any(p.dicom_file for p in with_slices)
        # A series of which some slices cannot be read would be a shorter CT.
        trouble = next((p.trouble for p in parts if p.trouble), "") if is_image else content.trouble
        if trouble and not is_in_image:
            shown = path or "the studies folder"
            yield _Refusal(image_id_of(path) if path else ".", shown, trouble)
        elif is_image:
            found.append(ImageEntry(path, ""))
        elif content.is_empty and (depth == 1 or suffix_of(path)):
            yield _Refusal(image_id_of(path), path, _EMPTY_FOLDER)
        for name, reason in content.refused.items():
            is_top_volume = not path and stem_of(name) != name
            full = f"{path}/{name}" if path else name
            yield _Refusal(
                image_id_of(stem_of(name)) if is_top_volume else printable(full), full, reason
            )
        for name in content.volumes if path else ():
            full = f"{path}/{name}"
            yield _Refusal(printable(full), full, _VOLUME_IN_FOLDER)
        for one in inner:
            yield from self._visit(one, depth + 1, found, is_in_image=is_image)


def _by_key(refusals: Iterable[_Refusal], *, taken: Container[str]) -> dict[str, str]:
    """Return the refusals by image id, or by path where that id is taken."""
    refused: dict[str, str] = {}
    for refusal in refusals:
        is_free = refusal.key not in taken and refusal.key not in refused
        path = printable(refusal.path)
        refused[refusal.key if is_free else path] = f"{path} {refusal.reason}"
    return refused


def _precedence(entry: ImageEntry) -> tuple[bool, bool, int, bool, str]:
    """Return the sort key of entries with the same id; the first one has the id.

    A file whose name is the id of another entry was probably downloaded from this server, so it comes last; a
    file comes before a folder.
    """
    is_own_name = entry.image_id == entry.path.removesuffix(entry.suffix)
    rank = SCAN_SUFFIXES.index(entry.suffix.lower()) if entry.suffix else len(SCAN_SUFFIXES)
    return is_own_name, not entry.suffix, rank, not entry.suffix.islower(), entry.path
