"""The single entry for labels: HTTP, labels folder, PACS and STOW-RS all call `LabelSubmissions.submit`.

1. Validate: the label lies on its image's grid and holds known organs (`check_label`). An invalid label
   goes into quarantine, but an invalid file in the labels folder stays there.
2. Store the volume and a version of it, which never change (`lib.labels.history`).
3. Write the working copy `labels/<tag>/IMAGE.nii.gz`, which people and clients read.
4. Call `on_submitted`.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import DatastoreError, LabelError, PacsError, ScanError
from lib.imaging.formats import suffix_of
from lib.imaging.scans import read_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels.history import (
    CLIENT,
    CONSENSUS,
    DRAWN,
    FINAL,
    FOLDER,
    SUFFIX,
    LabelHistory,
    Provenance,
)
from lib.labels.organ_values import read_organs
from lib.labels.quarantine import Quarantine
from lib.labels.store_index import Index
from lib.labels.studies_folder import LABELS
from lib.organs.plausibility import plausibility_warnings
from lib.storage.atomic_files import digest_of, replacing, sync
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.leftovers import scratch_folder
from lib.storage.storage_errors import storing
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

_NOT_KEPT = (
    "so the label was not kept; every label before it is. Keep it in your program, and submit it again when "
    "that is solved"
)
_NOT_QUARANTINED = (FOLDER, CONSENSUS)
"""Sources whose refused labels are not lost: the file stays in its folder, the readings in the history."""


@dataclass(frozen=True, slots=True)
class CheckedLabel:
    """A valid label."""

    volume: LabelVolume
    """Label with this server's values, on the image's grid."""
    organs: tuple[str, ...]
    """TG-263 names with at least one voxel, in the order of their values."""
    doubts: tuple[str, ...]
    """Plausibility warnings, one sentence each; the label is accepted nevertheless."""
    changes: tuple[str, ...] = ()
    """Differences between what was sent and `volume`, one sentence each."""


def check_label(
    file: Path,
    *,
    image: Path,
    image_id: str,
    label_info: object,
    labels: Mapping[str, int],
) -> CheckedLabel:
    """Return the label in a file, with the values of `labels`.

    Args:
        file: The label as it was sent, or put into the folder.
        image: The scan that it was drawn on.
        image_id: Id of the scan, for messages.
        label_info: The client's names of the values; empty if it sent none.
        labels: TG-263 name -> value on this server.

    Raises:
        ScanError: If the image is not one readable CT.
        LabelError: If the file is not a volume of integers, or a value or a name is unknown or contradictory.
        GeometryError: If it does not lie on the image's grid.
    """
    ct = read_ct(image, image_id=image_id)
    volume, changes = read_organs(
        file, image_id=image_id, grid=ct.grid, label_info=label_info, labels=labels
    )
    present = {int(value) for value in np.unique(volume.array)}
    organs = [name for name in sorted(labels, key=labels.__getitem__) if labels[name] in present]
    warnings = plausibility_warnings(ct.array_hu, volume.array, ct.grid, labels)
    return CheckedLabel(volume, tuple(organs), tuple(warnings), changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDependencies:
    """Dependencies of a store of labels; the same for a studies folder and for a PACS."""

    labels: Mapping[str, int]
    """TG-263 name -> value."""
    history: LabelHistory
    quarantine: Quarantine
    """Receives refused labels."""
    active_model: Callable[[], str | None] = lambda: None
    """Returns the version of the active model."""
    predicted_by: Callable[[str, LabelVolume], str | None] = lambda _image_id, _label: None
    """Returns the model that drew exactly this label on an image; None if none is known to have done so."""
    on_submitted: Callable[[LabelVersion], object] = lambda _: None
    """Called with each submitted or restored version, after it was stored."""


class LabelSubmissions:
    """Validates submitted labels, stores them as versions, and writes the working copies.

    The order of the steps survives a kill at any moment: volume, temporary copy, database row, rename.
    Once the row is on disk, the remaining steps need no space, and the folder watcher completes them.

    Args:
        folder: The studies folder.
        index: The store's index; its lock serializes requests and processes.
        dependencies: Label values, history, quarantine and callbacks.
        image: Returns the readable scan of an image id.
        set_aside: Moves a file out of the store without destroying it.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        dependencies: StoreDependencies,
        *,
        image: Callable[[str], Path],
        set_aside: Callable[[Path], None],
    ) -> None:
        self._folder = folder
        self._index = index
        self._dependencies = dependencies
        self._history = dependencies.history
        self._image = image
        self._set_aside = set_aside
        self.on_replaced: Callable[[Path], object] = lambda _: None
        """Called with the path of a working copy before it is replaced."""

    def working_copy(self, image_id: str, tag: str) -> Path:
        """Return the path of the current label's copy, in `labels/<tag>/`."""
        return self._folder / LABELS / tag / (image_id + SUFFIX)

    def submit(
        self,
        image_id: str,
        tag: str,
        file: Path,
        info: Mapping[str, Any] | None = None,
        *,
        source: str = CLIENT,
        submitted_at: datetime | None = None,
        changes: Sequence[str] = (),
        precondition: Callable[[], object] | None = None,
    ) -> LabelVersion:
        """Validate a label, store it as a version on disk, and return the version.

        It becomes the current version, unless the present one was submitted after `submitted_at`.

        Args:
            image_id: The image that the label was drawn on.
            tag: Tag of the label: `final`, `original` or another.
            file: The label file, which is not changed; with source `folder` it lies in the labels folder.
            info: Sent by the client: `label_info` names the values; `author`, `client_id` and
                `model_version` go into the history.
            source: As in `LabelVersion`.
            submitted_at: Time of submission, if not now.
            changes: Differences between what was sent and `file`, one sentence each.
            precondition: Called with the index locked, just before the version is stored; raises to prevent it.

        Raises:
            DatastoreError: If there is no such image, or the tag is not allowed.
            LabelError: If the file is no label, or names organs that this server does not contour.
            GeometryError: If it does not lie on the image's grid. In each case the previous label stays,
                and the message says where the refused label is kept.
            StorageError: If files cannot be written; the previous label stays.
        """
        require_tag(tag)
        require_image_id(image_id)
        info = dict(info or {})
        try:
            label_info = info.get("label_info") or []
            with self._draft(image_id, file, label_info, source) as (draft, label):
                label = replace(label, changes=(*changes, *label.changes))
                provenance = self._provenance(image_id, info, source, label, submitted_at)
                current = self._history.newest(image_id, tag)
                if submitted_at and current and submitted_at < current.submitted_at:
                    version = self._history.add(image_id, tag, draft, provenance)
                else:
                    version = self._publish(
                        image_id,
                        tag,
                        draft,
                        lambda: self._history.add(image_id, tag, draft, provenance),
                        in_folder=file if source == FOLDER else None,
                        precondition=precondition,
                    )
        except (LabelError, ScanError, DatastoreError, PacsError) as error:
            if source in _NOT_QUARANTINED:
                raise
            about = {"image": image_id, "tag": tag, "user": info.get("author", "")}
            raise type(error)(self.refuse(file, about, str(error))) from error
        for text in (*version.changes, *version.doubts):
            logger.info("%s: label %r %d: %s", image_id, tag, version.number, text)
        self._dependencies.on_submitted(version)
        return version

    def submit_consensus(
        self, image_id: str, label: LabelVolume, about: Mapping[str, Any]
    ) -> LabelVersion:
        """Submit (`submit`) the consensus of several readings as the final label of an image.

        Args:
            image_id: The image.
            label: With this server's values, on the image's grid.
            about: How the consensus was made; stored as `consensus` in the version's `info`.
        """
        with scratch_folder(self._history.folder.parent) as folder:
            file = folder / f"label{SUFFIX}"
            write_label(file, label)
            return self.submit(image_id, FINAL, file, {CONSENSUS: dict(about)}, source=CONSENSUS)

    def restore(self, image_id: str, tag: str, number: int, author: str) -> LabelVersion:
        """Make an older version the current one again, as a new version, and return that.

        Raises:
            DatastoreError: If there is no such version.
            StateError: If its volume is missing or damaged.
        """
        file = self._history.volume(self._history.version(image_id, tag, number))
        version = self._publish(
            image_id, tag, file, lambda: self._history.restore(image_id, tag, number, author)
        )
        self._dependencies.on_submitted(version)
        return version

    def refuse(self, file: Path, about: Mapping[str, Any], reason: str) -> str:
        """Put a refused label into quarantine, and return the reason with the place where it is kept."""
        suffix = suffix_of(file) or file.suffix
        about = {**about, "reason": reason}
        return f"{reason}; {self._dependencies.quarantine.keep(file, about, suffix=suffix)}"

    def keep_unseen_file(self, path: Path, image_id: str, tag: str) -> None:
        """Keep a file of the labels folder that is about to be replaced, if the history lacks its content.

        Call with the index locked. A file that is no label is set aside, where its owner finds it.
        """
        self.on_replaced(path)
        if not path.is_file():
            return
        digest = digest_of(path)
        if any(version.digest == digest for version in self._history.history(image_id, tag)):
            return
        try:
            with self._draft(image_id, path, (), FOLDER) as (draft, label):
                self._history.add(
                    image_id, tag, draft, self._provenance(image_id, {}, FOLDER, label)
                )
        except (LabelError, ScanError, PacsError) as error:
            logger.warning("%s: set aside for a submitted label: %s", path.name, error)
            self._set_aside(path)

    @contextmanager
    def _draft(
        self, image_id: str, file: Path, label_info: object, source: str
    ) -> Iterator[tuple[Path, CheckedLabel]]:
        """Yield a validated `.nii.gz` file for the history, and its content.

        Raises:
            As `check_label`; StorageError: If files cannot be written.
        """
        is_in_folder = source == FOLDER
        label = None if is_in_folder else self._checked(file, image_id, label_info)
        with (
            storing(image_id, _NOT_KEPT),
            scratch_folder(self._history.folder.parent) as scratch,
        ):
            draft = scratch / file.name
            if label is None:
                # The owner may change the file at any time: validate and store the same copy of it.
                shutil.copyfile(file, draft)
                label = self._checked(draft, image_id, label_info)
            # A file of the labels folder is stored as it is, unless its values or its format are others.
            if not is_in_folder or not draft.name.endswith(SUFFIX) or label.changes:
                draft = scratch / f"label{SUFFIX}"
                write_label(draft, label.volume)
            yield draft, label

    def _checked(self, file: Path, image_id: str, label_info: object) -> CheckedLabel:
        image = self._image(image_id)
        return check_label(
            file,
            image=image,
            image_id=image_id,
            label_info=label_info,
            labels=self._dependencies.labels,
        )

    def _provenance(
        self,
        image_id: str,
        info: dict[str, Any],
        source: str,
        label: CheckedLabel,
        submitted_at: datetime | None = None,
    ) -> Provenance:
        # It is unknown which model, if any, a file in the labels folder was made with.
        active = None if source == FOLDER else self._dependencies.active_model()
        # A prediction that the server itself stores was accepted by nobody yet.
        is_from_person = source in DRAWN
        unchanged_from = (
            self._dependencies.predicted_by(image_id, label.volume) if is_from_person else None
        )
        return Provenance(
            source=source,
            author=str(info.pop("author", "")),
            client=str(info.get("client_id") or "")[:200],
            model_version=str(info.get("model_version") or active or "")[:120] or None,
            organs=label.organs,
            doubts=label.doubts,
            changes=label.changes,
            unchanged_from=unchanged_from,
            info=info,
            submitted_at=submitted_at,
        )

    def _publish(
        self,
        image_id: str,
        tag: str,
        volume: Path,
        add: Callable[[], LabelVersion],
        *,
        in_folder: Path | None = None,
        precondition: Callable[[], object] | None = None,
    ) -> LabelVersion:
        """Add a version by calling `add`, and write its content, `volume`, as the working copy.

        Args:
            image_id: The image.
            tag: Tag of the label.
            volume: The version's content.
            add: Adds the version.
            in_folder: The file that the label was read from, if it lies in the labels folder.
            precondition: As in `submit`.
        """
        target = self.working_copy(image_id, tag)
        version: LabelVersion | None = None
        try:
            with self._index.locked() as index:
                index.entry(image_id)
                if precondition is not None:
                    precondition()
                self._clear_place(image_id, tag, in_folder)
                if in_folder == target and digest_of(volume) == digest_of(target):
                    version = add()
                else:
                    with replacing(target) as temporary:
                        shutil.copyfile(volume, temporary)
                        sync(temporary)
                        version = add()
                        if in_folder is not None:
                            self._set_aside(in_folder)
                self._index.changed(target)
            self._history.mark_in_place(version)
        except Exception as error:
            if version is None:
                raise
            # The version is stored, so its sender must not get an error; the folder watcher writes the copy.
            logger.warning(
                "%s: label %r is kept, its copy is written later: %s", image_id, tag, error
            )
        return version

    def _clear_place(self, image_id: str, tag: str, in_folder: Path | None) -> None:
        """Keep the content of the files that the working copy replaces."""
        target = self.working_copy(image_id, tag)
        # If this label is a file of the labels folder, the watcher submits the image's other files next.
        others = self._index.paths_of_label(image_id, tag) if in_folder is None else ()
        for path in {target, *others}:
            if path != in_folder:
                self.keep_unseen_file(path, image_id, tag)
                if path != target and path.is_file():
                    self._set_aside(path)
