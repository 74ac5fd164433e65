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

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lib.imaging.formats import SCAN_SUFFIXES, stem_of, suffix_of
from lib.labels.folder_content import (
    Content,
    Identity,
    identity_of,
    read_content,
    trouble_of,
    with_changes,
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What one entry of the studies folder contributes to the listing."""

    images: tuple[ImageEntry, ...] = ()
    refusals: tuple[_Refusal, ...] = ()


_NOTHING = _Part()


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
        self._top = Content()
        # Name of a folder in the studies folder -> path -> content of that folder and those in it.
        self._trees: dict[str, dict[str, Content]] = {}
        self._unsettled: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._parts: dict[str, _Part] = {}
        self._with_refusals: set[str] = set()
        self._by_id: dict[str, list[ImageEntry]] = {}
        self._images: dict[str, ImageEntry] = {}
        self._duplicates: dict[str, list[ImageEntry]] = {}
        self._listing = Listing({}, {})

    def listing(self, changed: Collection[str] | None = None) -> Listing:
        """Return the images as they are now: the same object as long as nothing changed.

        Args:
            changed: Paths in the studies folder at which something changed since the last call; a change of an
                entry of the studies folder itself is noticed anyway. None: any folder may have changed, and
                each is compared with its last state.
        """
        with self._mutex:
            names = self._check_top(changed)
            names |= self._check_trees(changed, names)
            reasons = self._present_reasons()
            if names or reasons != self._reasons:
                self._reasons = reasons
                self._listing = self._updated(names)
            return self._listing

    def entries(self) -> Entries:
        """Return all scans in the folder as they are now, for programs, which also read scans with one id."""
        self.listing()
        images = [entry for part in self._parts.values() for entry in part.images]
        refusals = self._refusals()
        volumes = [refusal.path for refusal in refusals if refusal.reason == _VOLUME_IN_FOLDER]
        refused = _by_key([r for r in refusals if r.reason != _VOLUME_IN_FOLDER], taken={})
        return Entries(images, volumes, refused)

    def _present_reasons(self) -> dict[str, str]:
        root = self.path.absolute()
        return {
            str(path.relative_to(root)): reason
            for path, reason in self._harmful().items()
            if path.is_relative_to(root)
        }

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
                others = [name for name in self._top.volumes if name != path]
                # Without an identity the folder is read again.
                self._top = replace(self._top, identity=(), is_settled=False, volumes=others)
                return False
            name = _top_name(path)
            tree = self._trees.get(name, {})
            folders = tree[path].folders if path in tree else ()
            parts = [path, *(f"{path}/{inner}" for inner in folders)]
            closed = [p for p in parts if p in tree and self._is_closed(p)]
            for part in closed:
                tree[part].is_settled = False
                self._unsettled.add(name)
            return not closed

    def changed_folders(self) -> list[str]:
        """Return the paths of the folders that changed since they were read; all of them are looked at.

        For file systems that report no changes. The lock is not held meanwhile.
        """
        known = {"": self._top}
        for tree in list(self._trees.values()):
            known |= tree
        return [path for path, content in known.items() if not self._is_unchanged(path, content)]

    def _is_unchanged(self, path: str, content: Content) -> bool:
        folder = self.path / path
        try:
            return content.identity == identity_of(folder) and content.is_still_refused(folder)
        except OSError:
            return False

    def _is_closed(self, path: str) -> bool:
        try:
            return bool(read_content(self.path / path, (), is_top=False, checked=()).trouble)
        except OSError:
            return True

    def _check_top(self, changed: Collection[str] | None) -> set[str]:
        """Update the content of the studies folder itself; return the names of its entries that changed."""
        last = self._top
        content = self._top_with(changed) if changed is not None else None
        if content is None:
            content = self._content("", last, changed)
            content = last if last.is_like(content) else content
        if content is last:
            return set()
        self._top = content
        names = set(last.volumes) ^ set(content.volumes)
        names |= set(last.folders) ^ set(content.folders)
        names |= {name for name, _ in last.refused.items() ^ content.refused.items()}
        return names if last.trouble == content.trouble else {*names, ""}

    def _top_with(self, changed: Collection[str]) -> Content | None:
        """Return the content of the studies folder after changes; None if it must be read."""
        last = self._top
        try:
            identity = identity_of(self.path)
            if last.trouble or not last.identity or "" in changed:
                return None
            names = {path for path in changed if "/" not in path}
            if identity != last.identity:
                visible = {name for name in os.listdir(self.path) if not name.startswith(".")}  # noqa: PTH208 - names
                names |= visible ^ {*last.volumes, *last.folders, *last.refused}
            content = with_changes(self.path, last, names) if names else last
        except OSError:
            return None
        if content is not None:
            content.identity = identity
        return content

    def _check_trees(self, changed: Collection[str] | None, names: Collection[str]) -> set[str]:
        """Update the contents of the folders in the studies folder; return the names of those that changed."""
        if changed is None:
            looked_at = {*self._trees, *self._top.folders}
        else:
            looked_at = {*map(_top_name, changed), *names, *self._unsettled}
        found = set()
        for name in looked_at:
            is_there = _contains(self._top.folders, name) and name not in self._reserved
            last = self._trees.get(name, {})
            tree = dict(self._walk(name, 1, (self._top.identity[:2],), last)) if is_there else {}
            if tree != last:
                found.add(name)
            if tree:
                self._trees[name] = tree
            else:
                self._trees.pop(name, None)
            if all(content.is_settled for content in tree.values()):
                self._unsettled.discard(name)
            else:
                self._unsettled.add(name)
        return found

    def _walk(
        self,
        path: str,
        depth: int,
        ancestors: tuple[Identity, ...],
        tree: Mapping[str, Content],
    ) -> Iterator[tuple[str, Content]]:
        """Yield the relative path and the content of the folder at `path`, and of the folders in it.

        Args:
            path: The folder.
            depth: Number of folders on the path.
            ancestors: Device and inode of the folders around it.
            tree: Path -> last content.
        """
        last = tree.get(path)
        content = self._content(path, last or Content())
        itself = content.identity[:2]
        if itself and itself in ancestors:
            content = Content(trouble="is a link to a folder around it", is_settled=True)
        elif depth > MAX_DEPTH:
            trouble = f"lies in more than {MAX_DEPTH} folders; move it up"
            content = Content(trouble=trouble, is_settled=True)
        yield path, last if last is not None and last.is_like(content) else content
        for name in content.folders:
            inner = f"{path}/{name}"
            if inner not in self._reserved:
                yield from self._walk(inner, depth + 1, (*ancestors, itself), tree)

    def _content(self, path: str, last: Content, changed: Collection[str] | None = None) -> Content:
        """Return the content of a folder, which is read unless it is known and unchanged.

        Args:
            path: The folder.
            last: Its last content.
            changed: Names of entries that changed; the folder is read then in any case. None if unknown.
        """
        folder = self.path / path
        try:
            identity = identity_of(folder)
            is_same = last.is_settled and last.identity == identity
            if changed is None and is_same and last.is_still_refused(folder):
                return last
            # The time is taken first: a change during the reading must not count as seen.
            is_settled = time.time() - folder.stat().st_mtime > SETTLED_S
            checked = [name for name in last.volumes if name not in (changed or ())]
            content = read_content(folder, identity, is_top=not path, checked=checked)
        except (FileNotFoundError, NotADirectoryError):
            return Content(trouble="" if path else "is missing")
        except OSError as error:
            return Content(trouble=f"cannot be read ({error.strerror or error})")
        content.is_settled = is_settled
        return content

    def _updated(self, names: Collection[str]) -> Listing:
        """Return the listing after entries of the studies folder changed."""
        changed_ids = set()
        for name in names:
            before, part = self._parts.pop(name, _NOTHING), self._part(name)
            if part != _NOTHING:
                self._parts[name] = part
            (self._with_refusals.add if part.refusals else self._with_refusals.discard)(name)
            for entry in before.images:
                self._by_id[entry.image_id].remove(entry)
            for entry in part.images:
                self._by_id.setdefault(entry.image_id, []).append(entry)
            changed_ids |= {entry.image_id for entry in (*before.images, *part.images)}
        images = dict(self._images)
        for image_id in changed_ids:
            entries = sorted(self._by_id.get(image_id, ()), key=_precedence)
            self._duplicates.pop(image_id, None)
            if entries:
                images[image_id] = entries[0]
                if entries[1:]:
                    self._duplicates[image_id] = entries
            else:
                images.pop(image_id, None)
                self._by_id.pop(image_id, None)
        if images.keys() != self._images.keys():
            images = dict(sorted(images.items()))
        self._images = images
        return self._without_harmful(images, self._refused(images))

    def _part(self, name: str) -> _Part:
        """Return what an entry of the studies folder contributes; the name is empty for the folder itself."""
        top, refusals, found = self._top, [], []
        if not name and top.trouble:
            refusals.append(_Refusal(".", "the studies folder", top.trouble))
        if name in top.refused:
            is_volume = stem_of(name) != name
            key = image_id_of(stem_of(name)) if is_volume else printable(name)
            refusals.append(_Refusal(key, name, top.refused[name]))
        if _contains(top.volumes, name):
            found.append(ImageEntry(name, name.removeprefix(stem_of(name))))
        elif _contains(top.folders, name):
            tree = self._trees.get(name, {})
            refusals += self._visit(name, 1, tree, found, is_in_image=False)
        return _Part(tuple(found), tuple(refusals))

    def _refusals(self) -> list[_Refusal]:
        """Return what is refused, apart from images with an id of another."""
        names = sorted(self._with_refusals, key=lambda n: (n not in self._top.refused, n))
        return [refusal for name in names for refusal in self._parts[name].refusals]

    def _refused(self, images: Mapping[str, ImageEntry]) -> dict[str, str]:
        refusals = self._refusals()
        for image_id, (first, *others) in sorted(self._duplicates.items()):
            path = printable(first.path)
            reason = f"has the image id {image_id}, as {path} has; rename one of them"
            refusals += [_Refusal(printable(e.path), e.path, reason) for e in others]
        return _by_key(refusals, taken=images)

    def _without_harmful(
        self, images: Mapping[str, ImageEntry], refused: dict[str, str]
    ) -> Listing:
        harmful = [
            (image_id, self._reasons[entry.path])
            for image_id, entry in (images.items() if self._reasons else ())
            if entry.path in self._reasons
        ]
        refused.update(harmful)
        kept = dict(images)
        for image_id, _ in harmful:
            del kept[image_id]
        return Listing(kept if harmful else images, dict(sorted(refused.items())))

    def _visit(
        self,
        path: str,
        depth: int,
        tree: Mapping[str, Content],
        found: list[ImageEntry],
        *,
        is_in_image: bool,
    ) -> Iterator[_Refusal]:
        """Append the images in a folder to `found`, and yield what is refused.

        Args:
            path: The folder.
            depth: Number of folders on the path.
            tree: Path -> content of the folder and those in it.
            found: The images.
            is_in_image: Whether the folder around it is an image, and its slices belong to that.
        """
        content = tree.get(path)
        if content is None:
            if self._reserved.get(path):
                yield _Refusal(path, path, self._reserved[path])
            return
        inner = [f"{path}/{name}" for name in content.folders]
        parts = [content, *(tree[p] for p in inner if p in tree)]
        with_slices = parts if depth == 1 else parts[:1]
        is_image = not is_in_image and any(p.dicom_file for p in with_slices)
        # A series of which some slices cannot be read would be a shorter CT.
        trouble = next((p.trouble for p in parts if p.trouble), "") if is_image else content.trouble
        if trouble and not is_in_image:
            yield _Refusal(image_id_of(path), path, trouble)
        elif is_image:
            found.append(ImageEntry(path, ""))
        elif content.is_empty and (depth == 1 or suffix_of(path)):
            yield _Refusal(image_id_of(path), path, _EMPTY_FOLDER)
        for name, reason in content.refused.items():
            yield _Refusal(printable(f"{path}/{name}"), f"{path}/{name}", reason)
        for name in content.volumes:
            yield _Refusal(printable(f"{path}/{name}"), f"{path}/{name}", _VOLUME_IN_FOLDER)
        for one in inner:
            yield from self._visit(one, depth + 1, tree, found, is_in_image=is_image)


def _top_name(path: str) -> str:
    return path.partition("/")[0]


def _contains(names: Sequence[str], name: str) -> bool:
    """Return whether sorted names contain a name."""
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


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
