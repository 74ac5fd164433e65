"""Tests that no confirmed label is lost: killed processes, concurrent processes, and a full disk."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from lib.errors import StorageFullError
from lib.imaging.scans import read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume
from lib.storage.atomic_files import digest_of
from tests.labels.test_folder_watcher import LABELS, aged, final, open_store
from tests.phantoms import make_ct, make_grid, make_label
from tests.small_disks import fill, small_disk
from tests.waiting import wait_until

IMAGES = ("a", "b", "c")


def make_images(studies: Path) -> Path:
    studies.mkdir(exist_ok=True)
    for image_id in IMAGES:
        write_ct(studies / f"{image_id}.nii.gz", make_ct())
    return studies


def save_repeatedly(studies: Path, confirmed: Path, start: int) -> None:
    """Save different labels one after another, and log the number of each that was confirmed."""
    store = open_store(studies)
    store.history.restore_from_files()
    store.watcher.run()
    sent = confirmed.with_name(f"sent-{start}.nii.gz")
    with confirmed.open("a", encoding="utf-8") as log:
        for number in range(start, start + 10_000):
            array = make_label()
            # The number in binary, in voxels of a brainstem.
            array[0, 0, :] = [(number >> bit) & 1 for bit in range(array.shape[2])]
            write_label(sent, LabelVolume(array, make_grid(), LABELS))
            store.save_label(IMAGES[number % 3], str(sent), "final", {"client_id": str(number)})
            log.write(f"{number}\n")
            log.flush()
            os.fsync(log.fileno())


def number_of(path: Path) -> int:
    array, _ = read_label(path, image_id="a", image_grid=make_grid())
    return int(sum(int(bit) << n for n, bit in enumerate(array[0, 0, :])))


def test_no_acknowledged_label_is_lost_by_kills(tmp_path: Path) -> None:
    studies, confirmed = make_images(tmp_path / "studies"), tmp_path / "confirmed.txt"
    confirmed.touch()
    rng = random.Random(0)  # noqa: S311 - random times
    context = multiprocessing.get_context("fork")
    for kill in range(6):
        count = len(confirmed.read_text().splitlines())
        process = context.Process(target=save_repeatedly, args=(studies, confirmed, 301 * kill))
        process.start()
        wait_until(
            lambda n=count: len(confirmed.read_text().splitlines()) >= n + 2,  # type: ignore[misc]
            "two are saved",
        )
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
    store = open_store(studies)
    store.history.restore_from_files()
    for image_id in IMAGES:
        if final(studies, f"{image_id}.nii.gz").is_file():
            aged(final(studies, f"{image_id}.nii.gz"))
    assert store.watcher.run() == []
    numbers = [int(line) for line in confirmed.read_text().split()]
    assert len(numbers) >= 12
    versions = {v.client: v for i in IMAGES for v in store.history.history(i, "final")}
    for number in numbers:
        version = versions[str(number)]
        path = store.history.path(version.digest)
        assert digest_of(path) == version.digest
        assert number_of(path) == number
    for version in store.history.current():
        assert version.is_in_place
        assert digest_of(final(studies, f"{version.image_id}.nii.gz")) == version.digest
        newest = max(n for n in numbers if IMAGES[n % 3] == version.image_id)
        assert int(version.client) >= newest
    assert {v.source for v in versions.values()} == {"client"}
    assert store.get_labeled_images() == list(IMAGES), "each is first in two of the processes"


def test_processes_that_save_at_once_lose_nothing(tmp_path: Path) -> None:
    studies = make_images(tmp_path / "studies")
    context = multiprocessing.get_context("fork")
    files = [tmp_path / f"confirmed-{n}.txt" for n in range(2)]
    processes = []
    for number, file in enumerate(files):
        file.touch()
        arguments = (studies, file, 1000 * (number + 1))
        processes.append(context.Process(target=save_repeatedly, args=arguments))
    for process in processes:
        process.start()
    wait_until(lambda: min(len(f.read_text().split()) for f in files) >= 6, "each saved six")
    for process in processes:
        process.kill()
        process.join()
    store = open_store(studies)
    versions = [v for i in IMAGES for v in store.history.history(i, "final")]
    assert {n for f in files for n in f.read_text().split()} <= {v.client for v in versions}
    for image_id in IMAGES:
        image_versions = [v for v in versions if v.image_id == image_id]
        assert [v.number for v in image_versions] == list(range(1, len(image_versions) + 1))
        assert [v.parent_id for v in image_versions] == [None, *[v.id for v in image_versions[:-1]]]


def test_a_full_disk_refuses_new_labels_and_keeps_all_old(tmp_path: Path) -> None:
    label = tmp_path / "l.nii.gz"
    write_label(label, LabelVolume(make_label(), make_grid(), LABELS))
    with small_disk(tmp_path / "studies", mib=4) as studies:
        store = open_store(make_images(studies))
        store.save_label("a", str(label), "final", {})
        before = final(studies).read_bytes()
        filler = fill(studies)
        other = LabelVolume(np.roll(make_label(), 1, axis=0), make_grid(), LABELS)
        write_label(label, other)
        for _ in range(3):
            with pytest.raises(StorageFullError, match="the label was not kept"):
                store.save_label("a", str(label), "final", {})
        assert final(studies).read_bytes() == before
        assert [v.number for v in store.history.history("a", "final")] == [1]
        assert store.get_labeled_images() == ["a"]
        assert store.datalist()[0]["id"] == "a"
        filler.unlink()
        store.save_label("a", str(label), "final", {})
        assert [v.number for v in store.history.history("a", "final")] == [1, 2]
        reopened = open_store(studies)
        assert reopened.history.restore_from_files() == 0
        assert reopened.watcher.run() == []


def test_a_disk_that_fills_up_step_by_step_never_leaves_half_a_label(tmp_path: Path) -> None:
    """The disk gets full at another step each time, since there is a little more room."""
    label = tmp_path / "l.nii.gz"
    with small_disk(tmp_path / "studies", mib=4) as studies:
        store = open_store(make_images(studies))
        write_label(label, LabelVolume(make_label(), make_grid(), LABELS))
        store.save_label("a", str(label), "final", {})
        count = 1
        for shift in range(1, 14):
            write_label(label, LabelVolume(np.roll(make_label(), shift, 0), make_grid(), LABELS))
            filler = fill(studies)
            os.truncate(filler, max(0, filler.stat().st_size - shift * 4096))
            try:
                store.save_label("a", str(label), "final", {})
                count += 1
            except StorageFullError:
                pass
            filler.unlink()
            versions = store.history.history("a", "final")
            assert len(versions) == count
            aged(final(studies))
            assert store.watcher.run() == []
            assert digest_of(final(studies)) == store.history.current()[0].digest
            assert open_store(studies).history.restore_from_files() == 0
        assert 1 < count < 14
