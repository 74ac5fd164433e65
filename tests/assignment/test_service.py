"""The consensus of a reader study in a studies folder: when it is computed, and from which readings."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from lib.assignment.consensus import Method
from lib.assignment.reader_studies import ReaderStudies
from lib.assignment.service import LOCK, ConsensusJob
from lib.datastores.local import FolderStore
from lib.imaging.scans import read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.labels.history import LabelHistory
from lib.labels.quarantine import Quarantine
from lib.labels.submission import StoreDependencies
from lib.organs.table import ORGAN_SETS
from lib.storage.database import FILE, Database, state_folder
from lib.storage.process_locks import ProcessLock
from lib.storage.tables import LabelVersion
from tests.phantoms import make_ct, make_grid, make_label

LABELS = ORGAN_SETS["openkbp"]


class Clinic:
    """A studies folder with one scan, `a`, and the parts of the server that a reader study uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.studies_folder = folder / "studies"
        self.state = state_folder(str(self.studies_folder), folder)
        self.database = Database(self.state / FILE)
        self.history = LabelHistory(self.database, self.state)
        self.studies = ReaderStudies(self.database)
        self.quarantine = Quarantine(self.state, limit_bytes=10**9)
        self.store = FolderStore(
            self.studies_folder,
            StoreDependencies(labels=LABELS, history=self.history, quarantine=self.quarantine),
        )
        write_ct(self.studies_folder / "a.nii.gz", make_ct())

    def submit(self, reader: str, *, wider: int = 0) -> None:
        """Submit a label; its organ 1 covers x = 13 to 15, and `wider` more voxels below 13."""
        array = make_label()
        array[13 - wider : 16, 4:9, 2:8] = 1
        file = self.folder / "sent.nii.gz"
        write_label(file, LabelVolume(array, make_grid(), LABELS))
        self.store.save_label("a", str(file), "final", {"author": reader})

    def job(self, method: Method = "staple") -> ConsensusJob:
        return ConsensusJob(self.store, self.studies, ProcessLock(self.state / LOCK), method)

    def versions(self) -> list[tuple[str, str]]:
        """Return source and author of each version, oldest first."""
        return [(v.source, v.author) for v in self.history.history("a", "final")]


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def newest(clinic: Clinic) -> LabelVersion:
    version = clinic.history.newest("a", "final")
    assert version is not None
    return version


def first_organ(clinic: Clinic, version: LabelVersion) -> list[int]:
    """Return the x indices of organ 1 in a version, on a line through its middle."""
    path = clinic.history.path(version.digest)
    array, _ = read_label(path, image_id="a", image_grid=make_grid())
    return [int(x) for x in np.flatnonzero(array[:, 6, 5] == 1)]


@pytest.mark.parametrize("method", ["staple", "majority"])
def test_the_second_reading_makes_a_consensus_the_current_label(
    clinic: Clinic, method: Method
) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    job = clinic.job(method)
    clinic.submit("ada")
    assert job.run() == []
    clinic.submit("bob", wider=4)
    (version,) = job.run()
    assert clinic.versions() == [("client", "ada"), ("client", "bob"), ("consensus", "")]
    assert version.id == newest(clinic).id
    # One contour lies within the other, so the border is halfway between them.
    assert first_organ(clinic, version) == [11, 12, 13, 14, 15]
    record = version.info["consensus"]
    assert (record["method"], record["of"]) == (method, [1, 2])
    (pair,) = record["agreement"]["pairs"]
    # Slices in x: 3 in one reading, 7 in the other; a voxel of another organ changes this slightly.
    assert pair["of"] == [1, 2]
    assert pair["dsc"][version.organs[0]] == pytest.approx(2 * 3 / (3 + 7), abs=0.02)
    assert record["agreement"]["mean"] == pair["dsc"]
    copy = clinic.studies_folder / "labels" / "final" / "a.nii.gz"
    stored = clinic.history.path(version.digest)
    assert copy.read_bytes() == stored.read_bytes()


def test_a_consensus_is_trained_on_like_any_other_label(clinic: Clinic) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    (version,) = clinic.job().run()
    (case,) = clinic.store.labelled_cases()
    assert (case.digest, case.number) == (version.digest, 3)
    assert case.organs == frozenset(version.organs) != frozenset()
    assert case.doubts == tuple(version.doubts)


def test_a_consensus_is_stored_once(clinic: Clinic) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    clinic.job().run()
    assert clinic.store.watcher.run() == []
    copy = clinic.studies_folder / "labels" / "final" / "a.nii.gz"
    # Old enough for the watcher to look at its content.
    os.utime(copy, (copy.stat().st_mtime - 60,) * 2)
    assert clinic.store.watcher.run() == []
    assert clinic.job().run() == []
    assert len(clinic.versions()) == 3
    assert clinic.history.restore_from_files() == 0
    assert not any(file.suffix == ".lock" for file in clinic.studies_folder.glob("labels/*/*"))


def test_a_corrected_reading_makes_a_new_consensus(clinic: Clinic) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    clinic.job().run()
    clinic.submit("ada", wider=4)
    assert newest(clinic).author == "ada"
    (version,) = clinic.job().run()
    assert version.info["consensus"]["of"] == [2, 4]
    assert version.info["consensus"]["agreement"]["mean"][version.organs[0]] == 1.0
    assert first_organ(clinic, version) == [9, 10, 11, 12, 13, 14, 15]


def test_a_consensus_whose_copy_is_missing_after_a_kill_is_copied(clinic: Clinic) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    copy = clinic.studies_folder / "labels" / "final" / "a.nii.gz"
    bobs_label = copy.read_bytes()
    (version,) = clinic.job().run()
    # As if the server had died between the row and the rename.
    copy.write_bytes(bobs_label)
    os.utime(copy, (copy.stat().st_mtime - 60,) * 2)
    with clinic.database.writing() as session:
        row = session.get(LabelVersion, version.id)
        assert row is not None
        row.is_in_place = False
    again = Clinic(clinic.folder)
    assert again.store.watcher.run() == []
    assert copy.read_bytes() == again.history.path(version.digest).read_bytes()
    assert again.job().run() == []


def test_images_outside_reader_studies_have_no_consensus(clinic: Clinic) -> None:
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    assert clinic.job().run() == []
    clinic.studies.set_readers("a", 2, "eve")
    assert len(clinic.job().run()) == 1


def test_one_server_at_a_time_computes_the_consensus(clinic: Clinic) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    other = ProcessLock(clinic.state / LOCK)
    assert other.try_acquire()
    assert clinic.job().run() == []
    other.close()
    jobs = [clinic.job() for _ in range(4)]
    threads = [threading.Thread(target=job.run) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clinic.versions().count(("consensus", "")) == 1


def test_unreadable_readings_do_not_stop_other_images(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.studies.set_readers("scan that is gone", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    volume = clinic.history.path(clinic.history.version("a", "final", 1).digest)
    volume.rename(volume.with_suffix(".away"))
    job = clinic.job()
    assert (job.run(), job.run()) == ([], [])
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "a: the consensus of the readings could not be made"
    ]
    assert clinic.quarantine.entries() == []
    clinic.submit("ada", wider=1)
    assert len(job.run()) == 1


def test_a_missing_scan_delays_its_consensus(clinic: Clinic) -> None:
    clinic.studies.set_readers("a", 2, "eve")
    clinic.submit("ada")
    clinic.submit("bob", wider=4)
    scan = clinic.studies_folder / "a.nii.gz"
    scan.rename(clinic.folder / "away.nii.gz")
    assert clinic.job().run() == []
    (clinic.folder / "away.nii.gz").rename(scan)
    assert len(clinic.job().run()) == 1
