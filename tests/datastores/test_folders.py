"""Tests of a store over folders that cannot be read or written, and over scans with names of all kinds."""

import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from lib.datastores.local import FolderStore
from lib.dicom.ct_writer import write_ct_series
from lib.errors import DatastoreError, ImageExistsError, ReaderStoppedError, ScanError, StorageError
from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.isolation.reader_pool import readers
from lib.labels.history import LabelHistory, Provenance
from lib.labels.quarantine import Quarantine
from lib.labels.submission import StoreDependencies
from lib.organs.table import ORGAN_SETS
from lib.storage.database import FILE, Database
from tests.permissions import forbidden, ordinary_user
from tests.phantoms import make_ct, make_grid, make_label

LABELS = ORGAN_SETS["openkbp"]
MAPPED = "Muller-a7842989"
"""Id of "Müller": its SHA-256 begins with a7842989."""


def open_store(folder: Path, *, scans: Path | None = None) -> FolderStore:
    state = folder.parent / "state"
    history = LabelHistory(Database(state / FILE), state)
    dependencies = StoreDependencies(labels=LABELS, history=history, quarantine=Quarantine(state))
    return FolderStore(folder, dependencies, scans=scans)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    write_ct(folder / "a.nii.gz", make_ct())
    return folder


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    path = tmp_path / "label.nii.gz"
    write_label(path, LabelVolume(make_label(), make_grid(), LABELS))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_mapped_id_is_used_for_everything(studies: Path, label_file: Path) -> None:
    write_ct_series(make_ct(), studies / "M\u00fcller", patient_id="x")
    for store in (open_store(studies), open_store(studies)):
        assert store.list_images() == [MAPPED, "a"]
        assert store.require_image(MAPPED) == studies / "M\u00fcller"
        assert store.get_image_info(MAPPED)["stored_as"] == "M\u00fcller"
        assert store.get_image_info(MAPPED)["name"] == f"{MAPPED}.nii.gz"
        assert "stored_as" not in store.get_image_info("a")
        store.save_label(MAPPED, str(label_file), "final", {})
        assert store.require_label(MAPPED, "final") == studies / f"labels/final/{MAPPED}.nii.gz"
        (case,) = store.labelled_cases()
        assert (case.image_id, case.image) == (MAPPED, studies / "M\u00fcller")
        assert store.datalist(full_path=False) == [
            {"id": MAPPED, "image": "M\u00fcller", "label": f"labels/final/{MAPPED}.nii.gz"}
        ]
    with pytest.raises(DatastoreError):
        store.require_image("M\u00fcller")
    store.remove_image(MAPPED)
    assert store.list_images() == ["a"]
    assert len(list((studies / ".removed").glob("*/M\u00fcller"))) == 1


def test_a_label_file_named_as_its_scan_is_a_label_of_the_mapped_id(
    studies: Path, label_file: Path
) -> None:
    write_ct_series(make_ct(), studies / "M\u00fcller", patient_id="x")
    store = open_store(studies)
    copied = studies / "labels" / "final" / "M\u00fcller.nii.gz"
    shutil.copyfile(label_file, copied)
    os.utime(copied, (0, 0))
    (version,) = store.watcher.run()
    assert (version.image_id, version.source) == (MAPPED, "folder")
    assert not copied.exists()
    assert store.get_labeled_images() == [MAPPED]
    assert store.watcher.run() == []


def test_an_unreadable_image_returns_with_its_information_and_label(
    studies: Path, label_file: Path
) -> None:
    store = open_store(studies)
    write_ct(studies / "b.nii.gz", make_ct())
    store.save_label("a", str(label_file), "final", {})
    store.update_image_info("a", {"note": "kept"})
    with forbidden(studies / "a.nii.gz"):
        for one in (store, open_store(studies)):
            with pytest.raises(
                ScanError, match=r"a: a\.nii\.gz cannot be read \(Permission denied"
            ):
                one.require_image("a")
            assert one.list_images() == ["b"]
            assert "a" in one.refused_images()
            assert one.labelled_cases() == []
            assert one.watcher.run() == []
    with forbidden(studies), ordinary_user():
        assert store.list_images() == []
        assert list(store.refused_images()) == ["."]
    for one in (store, open_store(studies)):
        assert sorted(one.list_images()) == ["a", "b"]
        assert one.get_image_info("a")["note"] == "kept"
        assert one.get_labeled_images() == ["a"]


def end_reader(*_given: object, **_named: object) -> NoReturn:
    """End the process, as a defect of a native library does."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def test_an_image_that_ends_its_reader_is_refused_until_its_file_changes(studies: Path) -> None:
    store = open_store(studies)
    with pytest.raises(ReaderStoppedError):
        readers().run(
            f"{__name__}:{end_reader.__name__}", {}, path=store.require_image("a"), case="a"
        )
    with pytest.raises(ScanError, match=r"^a: a\.nii\.gz could not be read: its reader died"):
        store.require_image("a")
    assert store.get_unlabeled_images() == []
    assert store.get_image_info("a") == {}
    write_ct(studies / "a.nii.gz", make_ct())
    assert store.require_image("a") == studies / "a.nii.gz"
    assert store.refused_images() == {}


@pytest.mark.parametrize("folder", ["labels", "labels/final"])
def test_a_labels_folder_that_cannot_be_read_hides_no_label(
    studies: Path, label_file: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.labels.folder_watcher.SETTLED_S", 0.0)
    store = open_store(studies)
    store.save_label("a", str(label_file), "final", {})
    with forbidden(studies / folder):
        for _ in range(3):
            assert store.watcher.run() == []
        assert store.get_labeled_images() == ["a"]
        # The copy cannot be read, so the version in the history is sent.
        assert ".organnet" not in str(label_file)
        kept, _ = read_label(store.require_label("a", "final"), image_id="a", image_grid=None)
        np.testing.assert_array_equal(kept, make_label())
    assert store.watcher.run() == []
    assert [v.number for v in store.history.current()] == [1]


def test_a_read_only_tag_folder_does_not_stop_the_others(
    studies: Path, label_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(studies)
    # The copies of these labels were not written before the server was killed.
    store.history.add("a", "final", label_file, Provenance(source="client"))
    store.history.add("a", "second", label_file, Provenance(source="client"))
    for tag in ("first", "third"):
        copied = studies / "labels" / tag / "a.nii.gz"
        copied.parent.mkdir()
        shutil.copyfile(label_file, copied)
        os.utime(copied, (0, 0))
    with forbidden(studies / "labels" / "final", mode=0o555):
        assert [version.tag for version in store.watcher.run()] == ["first", "third"]
    assert (studies / "labels" / "second" / "a.nii.gz").is_file()
    assert "the copy of label 'final'" in caplog.text
    store.watcher.run()
    assert store.require_label("a", "final").read_bytes() == label_file.read_bytes()


def test_a_label_of_an_unreadable_image_waits_for_it(studies: Path, label_file: Path) -> None:
    store = open_store(studies)
    copied = studies / "labels" / "final" / "a.nii.gz"
    shutil.copyfile(label_file, copied)
    os.utime(copied, (0, 0))
    with forbidden(studies / "a.nii.gz"):
        assert not store.watcher.run()
        with pytest.raises(ScanError):
            store.require_image("a")
        assert store.watcher.run() == []
        (refused,) = store.watcher.refused()
        assert refused.reason == "its image cannot be read at present"
    (version,) = store.watcher.run()
    assert version.number == 1
    assert store.watcher.refused() == []


@pytest.mark.parametrize("folder", ["labels/final", "../state/labels/history/a"])
def test_a_folder_that_becomes_read_only_refuses_labels_and_loses_none(
    studies: Path, label_file: Path, folder: str
) -> None:
    store = open_store(studies)
    store.save_label("a", str(label_file), "final", {})
    before = contents(studies)
    with forbidden(studies / folder, mode=0o555):
        with pytest.raises(StorageError, match=r"no permission to write there .*not kept"):
            store.save_label("a", str(label_file), "final", {})
        assert store.get_labeled_images() == ["a"]
    assert contents(studies) == before
    assert [v.number for v in store.history.current()] == [1]
    store.save_label("a", str(label_file), "final", {})
    assert [v.number for v in store.history.current()] == [2]


def test_images_are_listed_while_the_index_cannot_be_written(studies: Path) -> None:
    store = open_store(studies)
    write_ct(studies / "b.nii.gz", make_ct())
    with forbidden(studies, mode=0o555):
        assert store.list_images() == ["a", "b"]
    write_ct(studies / "c.nii.gz", make_ct())
    assert store.list_images() == ["a", "b", "c"]
    assert open_store(studies).list_images() == ["a", "b", "c"]


def test_with_a_state_folder_nothing_is_written_into_the_studies(
    tmp_path: Path, studies: Path, label_file: Path
) -> None:
    before = contents(studies)
    with forbidden(studies, mode=0o555):
        store = open_store(tmp_path / "work", scans=studies)
        store.save_label("a", str(label_file), "final", {})
        assert store.require_label("a", "final") == tmp_path / "work/labels/final/a.nii.gz"
        assert store.require_image("a") == studies / "a.nii.gz"
        with pytest.raises(StorageError, match=r"b: .*so the scan was not stored"):
            store.add_image("b", str(studies / "a.nii.gz"), {})
        store.remove_label("a", "final")
        assert store.get_unlabeled_images() == ["a"]
    assert contents(studies) == before
    assert store.add_image("b", str(studies / "a.nii.gz"), {}) == "b"
    assert read_ct(studies / "b.nii.gz").grid == make_ct().grid


def test_labels_in_studies_that_are_only_read_are_named(tmp_path: Path, studies: Path) -> None:
    (studies / "labels" / "final").mkdir(parents=True)
    store = open_store(tmp_path / "work", scans=studies)
    assert "(--conf state_dir)" in store.refused_images()["labels"]


def test_a_scan_does_not_replace_an_entry_that_is_no_image(studies: Path) -> None:
    (studies / "b").mkdir()
    (studies / "b" / "notes.txt").write_text("kept")
    (studies / "c.nii.gz").write_bytes(b"")
    store = open_store(studies)
    for name in ("c",):
        with pytest.raises(ImageExistsError, match=f"{name}: .* exists already"):
            store.add_image(name, str(studies / "a.nii.gz"), {})
    assert (studies / "c.nii.gz").read_bytes() == b""


@pytest.mark.parametrize("place", ["studies/labels/final", "state/labels"])
def test_a_file_in_place_of_a_folder_refuses_labels_with_the_reason(
    tmp_path: Path, studies: Path, label_file: Path, place: str
) -> None:
    store = open_store(studies)
    store.save_label("a", str(label_file), "final", {})
    folder = tmp_path / place
    folder.rename(tmp_path / "aside")
    folder.write_text("a note")
    with pytest.raises(StorageError, match="a: a file lies where a folder is expected"):
        store.save_label("a", str(label_file), "final", {})
    assert folder.read_text() == "a note"
    folder.unlink()
    (tmp_path / "aside").rename(folder)
    store.save_label("a", str(label_file), "final", {})
    assert [v.number for v in store.history.current()] == [2]
