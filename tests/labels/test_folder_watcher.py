"""Tests of the folder watcher: files added, changed or removed by users, and saves interrupted by a kill."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lib.datastores.local import FolderStore
from lib.imaging.geometry import Grid
from lib.imaging.scans import read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels import folder_watcher, submission
from lib.labels.history import LabelHistory, Provenance
from lib.labels.quarantine import Quarantine
from lib.labels.submission import StoreDependencies
from lib.organs.table import ORGAN_SETS
from lib.storage.atomic_files import digest_of
from lib.storage.database import Database, state_folder
from tests.phantoms import make_ct, make_grid, make_label
from tests.segment_files import slicer_fields, write_named_nifti, write_seg_nrrd

LABELS = ORGAN_SETS["openkbp"]


def open_store(folder: Path) -> FolderStore:
    state = state_folder(str(folder), folder)
    history = LabelHistory(Database(state / "workflow.sqlite"), state)
    return FolderStore(
        folder,
        StoreDependencies(
            labels=LABELS,
            history=history,
            quarantine=Quarantine(state),
            active_model=lambda: "organnet25d-tiny-00000000",
        ),
    )


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    write_ct(folder / "a.nii.gz", make_ct())
    return folder


@pytest.fixture
def store(studies: Path) -> FolderStore:
    return open_store(studies)


def write(path: Path, shift: int = 0, grid: Grid | None = None) -> Path:
    """Write a label whose last write was a minute ago; `shift` changes its content."""
    grid = grid or make_grid()
    array = np.roll(make_label(grid), shift, axis=0)
    write_label(path, LabelVolume(array, grid, LABELS))
    return aged(path)


def aged(path: Path) -> Path:
    before = time.time() - 60 - path.stat().st_size % 7
    os.utime(path, (before, before))
    return path


def final(studies: Path, name: str = "a.nii.gz") -> Path:
    return studies / "labels" / "final" / name


def numbers(store: FolderStore, tag: str = "final") -> list[int]:
    return [version.number for version in store.history.history("a", tag)]


def test_a_file_copied_into_the_folder_becomes_a_version(store: FolderStore, studies: Path) -> None:
    copied = write(final(studies))
    assert store.get_labeled_images() == []
    (version,) = store.watcher.run()
    assert (version.source, version.organs) == (
        "folder",
        [name for name in LABELS if LABELS[name] in (1, 2, 7)],
    )
    assert version.digest == digest_of(copied)
    assert store.history.path(version.digest).read_bytes() == copied.read_bytes()
    assert store.get_labeled_images() == ["a"]
    assert store.watcher.run() == []
    assert store.history.current()[0].is_in_place


def test_a_file_edited_in_place_becomes_the_next_version(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    store.save_label("a", str(write(tmp_path / "l.nii.gz")), "final", {"client_id": "me"})
    first = store.history.current()[0]
    write(final(studies), shift=1)
    (second,) = store.watcher.run()
    assert (second.number, second.parent_id, second.source) == (2, first.id, "folder")
    assert store.history.path(first.digest).is_file()
    # A user copies the first version back.
    shutil.copyfile(store.history.path(first.digest), final(studies))
    aged(final(studies))
    (third,) = store.watcher.run()
    assert (third.number, third.digest) == (3, first.digest)


def test_a_file_of_another_format_is_converted(store: FolderStore, studies: Path) -> None:
    copied = write(final(studies, "a.nrrd"))
    (version,) = store.watcher.run()
    label, _ = read_label(final(studies), image_id="a", image_grid=make_grid())
    np.testing.assert_array_equal(label, make_label())
    assert digest_of(final(studies)) == version.digest
    assert not copied.exists()
    assert list((studies / ".removed").rglob("a.nrrd"))
    assert store.watcher.run() == []


def test_a_file_that_is_still_being_copied_is_not_validated(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    whole = write(tmp_path / "l.nii.gz").read_bytes()
    final(studies).write_bytes(whole[: len(whole) // 2])
    assert store.watcher.run() == []
    assert store.watcher.refused() == []
    final(studies).write_bytes(whole)
    aged(final(studies))
    assert len(store.watcher.run()) == 1


def test_a_file_with_a_future_time_becomes_a_version_once_it_stays_unchanged(
    store: FolderStore, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(final(studies))
    ahead = time.time() + 3600
    os.utime(path, (ahead, ahead))
    monkeypatch.setattr(folder_watcher, "SETTLED_S", 0.2)
    assert store.watcher.run() == []
    time.sleep(0.3)
    assert len(store.watcher.run()) == 1


def test_a_file_that_is_no_label_is_listed_and_read_once(
    store: FolderStore, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final(studies).write_bytes(b"<html>not found</html>")
    aged(final(studies))
    write(final(studies, "unknown.nii.gz"))
    assert store.watcher.run() == []
    assert [(r.file.image_id, r.file.tag) for r in store.watcher.refused()] == [
        ("a", "final"),
        ("unknown", "final"),
    ]
    reasons = [refused.reason for refused in store.watcher.refused()]
    assert "holds a web page" in reasons[0]
    assert "no such image" in reasons[1]
    assert store.get_labeled_images() == []
    assert store.datalist() == []
    assert final(studies).is_file()

    def fail(*_given: object, **_named: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(submission, "check_label", fail)
    assert store.watcher.run() == []
    assert len(store.watcher.refused()) == 2


def test_a_refused_file_is_validated_again_when_its_image_changes(
    store: FolderStore, studies: Path
) -> None:
    grid = make_grid((18, 16, 12))
    write(final(studies), grid=grid)
    assert store.watcher.run() == []
    assert "the label lies on 18 x 16 x 12" in store.watcher.refused()[0].reason
    write_ct(studies / "a.nii.gz", make_ct(grid))
    assert len(store.watcher.run()) == 1
    assert store.watcher.refused() == []


def test_garbage_in_place_of_a_label_is_not_delivered(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    store.save_label("a", str(write(tmp_path / "l.nii.gz")), "final", {})
    version = store.history.current()[0]
    final(studies).write_bytes(b"garbage")
    aged(final(studies))
    store.watcher.run()
    assert store.require_label("a", "final") == store.history.path(version.digest)
    assert store.datalist()[0]["label"] == str(store.history.path(version.digest))
    assert len(store.watcher.refused()) == 1
    store.save_label("a", str(write(tmp_path / "l.nii.gz", shift=1)), "final", {})
    assert next((studies / ".removed").rglob("a.nii.gz")).read_bytes() == b"garbage"
    store.watcher.run()
    assert store.watcher.refused() == []
    assert numbers(store) == [1, 2]


def test_an_edit_that_the_watcher_has_not_seen_survives_a_submission(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    store.save_label("a", str(write(tmp_path / "l.nii.gz")), "final", {})
    edited = digest_of(write(final(studies), shift=1))
    store.save_label("a", str(write(tmp_path / "l.nii.gz", shift=2)), "final", {})
    versions = store.history.history("a", "final")
    assert [v.source for v in versions] == ["client", "folder", "client"]
    assert versions[1].digest == edited
    assert digest_of(final(studies)) == versions[2].digest
    assert store.watcher.run() == []


def test_a_file_removed_by_hand_hides_its_version(
    store: FolderStore, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save_label("a", str(write(tmp_path / "l.nii.gz")), "final", {})
    store.watcher.run()
    final(studies).unlink()
    assert store.get_labeled_images() == []
    store.watcher.run()
    assert store.history.current() != [], "a program may be about to write it again"
    monkeypatch.setattr(folder_watcher, "SETTLED_S", 0.0)
    store.watcher.run()
    assert store.history.current() == []
    assert numbers(store) == [1]
    store.submissions.restore("a", "final", 1, "eve")
    assert store.get_labeled_images() == ["a"]


def test_labels_of_a_missing_folder_are_written_again(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    store.save_label("a", str(write(tmp_path / "l.nii.gz")), "final", {})
    before = final(studies).read_bytes()
    shutil.rmtree(studies / "labels")
    store.watcher.run()
    assert final(studies).read_bytes() == before
    assert store.get_labeled_images() == ["a"]


def test_a_save_interrupted_by_a_kill_is_completed(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    store.save_label("a", str(write(tmp_path / "l.nii.gz")), "final", {})
    first = store.history.current()[0]
    # State after a kill between commit and rename: version 2 is in the database, version 1 in the folder.
    other = write(tmp_path / "m.nii.gz", shift=1)
    store.submissions.restore("a", "final", 1, "eve")
    shutil.copyfile(store.history.path(first.digest), final(studies))
    aged(final(studies))
    new_digest = add_only(store, other)
    reopened = open_store(studies)
    assert reopened.watcher.run() == []
    assert digest_of(final(studies)) == new_digest
    assert reopened.history.current()[0].is_in_place
    final(studies).unlink()
    add_only(reopened, write(tmp_path / "n.nii.gz", shift=2))
    reopened.watcher.run()
    assert digest_of(final(studies)) == reopened.history.current()[0].digest


def add_only(store: FolderStore, file: Path) -> str:
    """Add a version to the history without its working copy."""
    return store.history.add("a", "final", file, Provenance(source="client")).digest


def test_removed_labels_are_hidden_and_kept(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    for tag in ("final", "original"):
        store.save_label("a", str(write(tmp_path / "l.nii.gz")), tag, {})
    store.remove_label("a", "final")
    assert store.history.current() == []
    assert len(store.history.current("original")) == 1
    assert store.watcher.run() == []
    store.remove_image("a")
    assert store.history.current(None) == []
    assert numbers(store) == numbers(store, "original") == [1]


def test_a_label_of_unchanged_size_and_time_is_not_read(store: FolderStore, studies: Path) -> None:
    label = write(final(studies))
    store.watcher.run()
    before = label.stat()
    with label.open("r+b") as file:
        file.write(b"garbage")
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.watcher.run() == []
    assert list(store.watcher.refused()) == []
    aged(label)
    assert store.watcher.run() == []
    assert [refused.file.image_id for refused in store.watcher.refused()] == ["a"]


def test_labels_record_the_active_model(store: FolderStore, tmp_path: Path) -> None:
    label = str(write(tmp_path / "l.nii.gz"))
    store.save_label("a", label, "final", {"author": "ada", "client_id": "slicer"})
    store.save_label("a", label, "final", {"model_version": "mine"}, source="infer")
    first, second = store.history.history("a", "final")
    assert (first.author, first.client, first.model_version) == (
        "ada", "slicer", "organnet25d-tiny-00000000",
    )  # fmt: skip
    assert (second.source, second.model_version) == ("infer", "mine")


def test_a_new_server_has_the_information_from_clients(
    store: FolderStore, studies: Path, tmp_path: Path
) -> None:
    label = str(write(tmp_path / "l.nii.gz"))
    store.save_label("a", label, "final", {"client_id": "slicer"})
    assert open_store(studies).get_label_info("a", "final")["client_id"] == "slicer"


def test_a_float_label_is_refused(store: FolderStore, studies: Path) -> None:
    array = make_label().astype(np.float32)
    image: Any = nib.Nifti1Image(array, make_grid().affine_ras)  # type: ignore[no-untyped-call]
    nib.save(image, final(studies))
    aged(final(studies))
    assert store.watcher.run() == []
    assert "voxels are float32" in store.watcher.refused()[0].reason


# --- files that name their segments


def named_boxes() -> Any:
    """Return a label with two boxes: 48 voxels of the value 1 and 80 of the value 2."""
    array = np.zeros(make_grid().shape_vox, np.uint8)
    array[2:5, 4:8, 3:7] = 1
    array[8:13, 4:8, 3:7] = 2
    return array


def stored_voxels(studies: Path) -> dict[int, int]:
    """Return value -> number of voxels in the working copy."""
    image: Any = nib.load(final(studies))
    array = np.asanyarray(image.dataobj)
    return {int(v): int((array == v).sum()) for v in np.unique(array) if v}


def test_a_segmentation_of_slicer_is_read_by_its_names(store: FolderStore, studies: Path) -> None:
    fields = slicer_fields([("Parotid_L", 1, 0), ("brain stem", 2, 0)])
    path = final(studies, "a.seg.nrrd")
    aged(write_seg_nrrd(path, [named_boxes()], make_grid(), fields))
    (version,) = store.watcher.run()
    assert stored_voxels(studies) == {LABELS["Parotid_L"]: 48, LABELS["Brainstem"]: 80}
    assert version.changes == [
        "'brain stem' was stored as Brainstem",
        "the values were stored by their names: 1 as 4 (Parotid_L), 2 as 1 (Brainstem)",
    ]
    assert not path.exists()
    assert list((studies / ".removed").rglob("a.seg.nrrd"))
    assert store.watcher.run() == []
    assert numbers(store) == [1]


def test_an_unknown_name_in_a_segmentation_is_refused_by_name(
    store: FolderStore, studies: Path
) -> None:
    fields = slicer_fields([("Parotid_L", 1, 0), ("GTV", 2, 0)])
    path = final(studies, "a.seg.nrrd")
    aged(write_seg_nrrd(path, [named_boxes()], make_grid(), fields))
    assert store.watcher.run() == []
    (refused,) = store.watcher.refused()
    assert "'GTV' is not an organ of this server" in refused.reason
    assert path.is_file()


def test_a_file_whose_names_give_its_values_another_meaning_is_replaced_by_what_is_stored(
    store: FolderStore, studies: Path
) -> None:
    names = {1: "parotid_gland_left", 2: "brainstem"}
    aged(write_named_nifti(final(studies), named_boxes(), make_grid(), names))
    before = digest_of(final(studies))
    (version,) = store.watcher.run()
    assert stored_voxels(studies) == {LABELS["Parotid_L"]: 48, LABELS["Brainstem"]: 80}
    assert version.digest == digest_of(final(studies)) != before
    aged(final(studies))
    assert store.watcher.run() == []
    assert numbers(store) == [1]
    (kept,) = (studies / ".removed").rglob("a.nii.gz")
    assert digest_of(kept) == before


def test_changes_by_an_import_are_kept_with_the_version(store: FolderStore, studies: Path) -> None:
    digest = digest_of(write(final(studies)))
    changes = ["'RightParotid' was stored as Parotid_R"]
    entry = {"label_sha256": digest, "changes": changes}
    (studies / "import.json").write_text(json.dumps({"cases": {"a": entry}}), encoding="utf-8")
    (version,) = store.watcher.run()
    assert (version.digest, version.changes) == (digest, changes)
    write(final(studies), shift=1)
    (edited,) = store.watcher.run()
    assert edited.changes == [], "the file is no longer that of the import"
