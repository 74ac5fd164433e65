"""Tests of the index of a store: what a request costs, watched folders, and several servers over one folder."""

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from lib.datastores.local import FolderStore
from lib.dicom.ct_writer import write_ct_series
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels import folder_changes, label_folders, studies_folder
from lib.labels.folder_changes import FolderChanges, is_network_folder
from lib.labels.studies_folder import StudiesFolder
from lib.storage.database import Database
from lib.storage.image_changes import KEPT, ImageChanges, record_changes
from tests.labels.test_folder_watcher import LABELS, aged, final, open_store
from tests.labels.test_studies_folder import SLICE
from tests.permissions import forbidden
from tests.phantoms import make_ct, make_grid, make_label
from tests.waiting import wait_until


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    write_ct(folder / "a.nii.gz", make_ct())
    return folder


@pytest.fixture
def label(tmp_path: Path) -> Path:
    path = tmp_path / "label.nii.gz"
    write_label(path, LabelVolume(make_label(), make_grid(), LABELS))
    return aged(path)


@contextmanager
def watched(folder: Path) -> Iterator[FolderStore]:
    """Yield a store over a folder that it watches, as in a server."""
    store = open_store(folder)
    watch = store.watch()
    try:
        yield store
    finally:
        watch.stop()


# --- the cost of a request


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Yield the number of calls of the operating system by name, and of SQL statements, in this thread."""
    calls: Counter[str] = Counter()

    def count(_frame: FrameType, kind: str, function: Any) -> None:
        if kind == "c_call" and getattr(function, "__module__", None) == "posix":
            calls[function.__name__] += 1

    def count_statement(*_given: object) -> None:
        calls["SQL"] += 1

    event.listen(Engine, "before_cursor_execute", count_statement)
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        event.remove(Engine, "before_cursor_execute", count_statement)


def calls_by_request(folder: Path, number: int, label: Path) -> dict[str, Counter[str]]:
    """Return the calls of each kind of request to a store with twice so many studies, half of them labelled."""
    studies = folder / f"studies-{number}"
    (studies / "labels" / "final").mkdir(parents=True)
    scan = folder / f"scan-{number}.nii.gz"
    write_ct(scan, make_ct())
    for n in range(number):
        os.link(scan, studies / f"scan_{n:03d}.nii.gz")
        (studies / f"series_{n:03d}").mkdir()
        (studies / f"series_{n:03d}" / "IM1").write_bytes(SLICE)
        os.link(label, final(studies, f"scan_{n:03d}.nii.gz"))
    with watched(studies) as store:
        assert len(store.watcher.run()) == number
        assert store.watcher.run() == []
        # Once before: what is made at the first use does not count.
        store.save_label("scan_000", str(label), "final", {})
        store.add_image("sent_0", str(scan), {})
        store.json_text()
        store.labelled_cases()
        store.watcher.run()
        requests: dict[str, Callable[[], object]] = {
            "label": lambda: store.save_label("scan_001", str(label), "final", {}),
            "image": lambda: store.add_image("sent_1", str(scan), {}),
            "counts": store.status,
            "list": store.json_text,
            "unlabelled": store.unlabelled_images,
            "labelled": store.labelled_cases,
            "one image": lambda: store.require_image("scan_002"),
            "watcher": store.watcher.run,
        }
        calls = {}
        for name, send in requests.items():
            with counted() as calls[name]:
                send()
    return calls


def test_no_request_makes_more_calls_with_more_studies(
    tmp_path: Path, label: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without notices, as these come at any time; the store notes what it changes itself.
    monkeypatch.setattr(FolderChanges, "_open_notices", lambda _self: None)
    monkeypatch.setattr(folder_changes, "COMPARE_S", 3600.0)
    # A folder that changed a moment ago is read again; how long ago depends on the machine.
    for module in (label_folders, studies_folder):
        monkeypatch.setattr(module, "SETTLED_S", -3600.0)
    few, many = (calls_by_request(tmp_path, number, label) for number in (4, 40))
    assert few["label"]["SQL"] > 0
    assert few["label"]["fsync"] > 0
    assert few["counts"]["stat"] > 0
    assert many == few


# --- the studies folder


def test_a_listing_of_changes_is_that_of_the_whole_folder(tmp_path: Path) -> None:
    """Random changes, each reported to one listing, and compared with a listing that reads everything."""
    chance = random.Random(7)  # noqa: S311 - no secret
    names = ["a.nii", "a.nrrd", "b.nii.gz", "M\u00fcller.nii", "Muller-a7842989.nii", "c", "d", "d/inner",
             "d/e/f", "notes.txt", "loose.dcm", "export.zip", "g.nii"]  # fmt: skip

    def change(path: Path) -> None:
        if path.is_dir() and chance.random() < 0.5:
            path = path / chance.choice(["IM1", "scan.nii", "text.txt"])
        if os.path.lexists(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = chance.random()
        if kind < 0.2:
            path.mkdir()
        elif kind < 0.3:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(chance.choice([SLICE, b"", b"text"]))

    studies = StudiesFolder(tmp_path, reserved={"labels": ""}, harmful=dict)
    studies.listing()
    for _ in range(200):
        name = chance.choice(names)
        try:
            change(tmp_path / name)
        except (NotADirectoryError, FileExistsError):
            continue
        parts = name.split("/")
        changed = {"/".join(parts[: n + 1]) for n in range(len(parts))}
        changed |= {str(path.relative_to(tmp_path)) for path in (tmp_path / name).glob("*")}
        listing = studies.listing(changed)
        whole = StudiesFolder(tmp_path, reserved={"labels": ""}, harmful=dict).listing()
        assert dict(listing.images) == dict(whole.images)
        assert dict(listing.refused) == dict(whole.refused)


def test_what_changes_in_a_watched_folder_is_listed(studies: Path, label: Path) -> None:
    with watched(studies) as store:
        assert store.list_images() == ["a"]
        write_ct(studies / "b.nii.gz", make_ct())
        assert store.list_images() == ["a", "b"], (
            "the next request lists an entry of the folder itself"
        )
        (studies / "late" / "ct").mkdir(parents=True)
        assert store.list_images() == ["a", "b"]
        write_ct_series(make_ct(), studies / "late" / "ct", patient_id="x")
        wait_until(lambda: store.list_images() == ["a", "b", "late"], "the series is listed")
        (studies / "b.nii.gz").unlink()
        shutil.rmtree(studies / "late" / "ct")
        wait_until(lambda: store.list_images() == ["a"], "they are no longer listed")
        with forbidden(studies / "a.nii.gz"):
            wait_until(lambda: "a" in store.refused_images(), "the unreadable scan is refused")
        wait_until(lambda: store.list_images() == ["a"], "it is listed again")
        shutil.copy2(label, final(studies))
        wait_until(store.watcher.run, "the label file becomes a version")
        assert store.get_labeled_images() == ["a"]
        final(studies).unlink()
        wait_until(lambda: store.get_unlabeled_images() == ["a"], "its label is not listed")
        wait_until(lambda: not store.watcher.run() and not store.history.current(), "it is hidden")


def test_without_notices_the_folders_are_compared(
    studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (studies / "series").mkdir()
    monkeypatch.setattr(FolderChanges, "_open_notices", lambda _self: None)
    monkeypatch.setattr(folder_changes, "COMPARE_S", 0.02)
    with watched(studies) as store:
        assert store.list_images() == ["a"]
        write_ct_series(make_ct(), studies / "series", patient_id="x")
        wait_until(lambda: store.list_images() == ["a", "series"], "the series is listed")


MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:50 / /mnt/my\\040share rw shared:1 - cifs //server/share rw
31 22 0:51 / /mnt/nas rw - nfs4 nas:/scans rw
32 31 8:2 / /mnt/nas/local rw - ext4 /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/home/x", "local"), ("/mnt/my share", "network"), ("/mnt/nas/ct", "network"),
     ("/mnt/nas/local/ct", "local"), ("/mnt/nasty", "local")],
)  # fmt: skip
def test_a_network_share_is_recognised_by_its_mount(folder: str, kind: str) -> None:
    assert is_network_folder(Path(folder), MOUNTS) is (kind == "network")


# --- several servers


def test_a_server_lists_at_once_what_another_stored(studies: Path, label: Path) -> None:
    with watched(studies) as one, watched(studies) as other:
        assert other.get_unlabeled_images() == ["a"]
        one.save_label("a", str(label), "final", {"client_id": "me"})
        assert other.get_labeled_images() == ["a"]
        assert other.get_label_info("a", "final")["client_id"] == "me"
        one.update_image_info("a", {"note": "new"})
        one.update_label_info("a", "final", {"note": "new"})
        assert other.get_image_info("a")["note"] == "new"
        assert other.get_label_info("a", "final")["note"] == "new"
        one.remove_label("a", "final")
        assert other.get_unlabeled_images() == ["a"]
        one.remove_image("a")
        assert other.list_images() == []


def test_a_server_that_missed_too_many_changes_reads_everything(tmp_path: Path) -> None:
    database = Database(tmp_path / "workflow.sqlite")
    seen = ImageChanges(database)
    assert seen.take() is None
    assert seen.take() == set()
    with database.writing() as session:
        record_changes(session, ["a", "b", "a"])
    assert seen.take() == {"a", "b"}
    with database.writing() as session:
        record_changes(session, [f"c{n}" for n in range(KEPT + 1)])
    assert seen.take() is None
    assert seen.take() == set()
    database.close()
