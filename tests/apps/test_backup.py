"""Backup and restore: one command each, while labels are being submitted."""

import gzip
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apps.backup import main
from lib.activelearning.edit_costs import EditCostRecords
from lib.datastores.local import FolderStore
from lib.imaging.scans import write_ct
from lib.models.registry import Registry, load_model, save_model
from lib.networks.build import build_network
from lib.storage.atomic_files import digest_of
from lib.storage.database import Database
from lib.storage.tables import CaseSet, Promotion, Setting
from tests.labels.test_folder_watcher import final, open_store, write
from tests.phantoms import make_ct
from tests.tiny import TINY

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return new_store(tmp_path / "studies")


def new_store(studies: Path) -> FolderStore:
    studies.mkdir()
    for image_id in ("a", "b"):
        write_ct(studies / f"{image_id}.nii.gz", make_ct())
    return open_store(studies)


def save(store: FolderStore, folder: Path, shift: int, image_id: str = "a") -> None:
    label = write(folder / "label.nii.gz", shift=shift)
    store.save_label(image_id, str(label), "final", {"client_id": str(shift), "author": "ada"})


def create(folder: Path, name: str = "backup.tar.gz", studies: str = "studies") -> Path:
    arguments = ["--studies", str(folder / studies), "--model-dir", str(folder / "models")]
    assert main(["create", *arguments, "--output", str(folder / name)]) == 0
    return folder / name


def restore(folder: Path, archive: Path, studies: str = "studies", models: str = "models") -> int:
    arguments = ["--studies", str(folder / studies), "--model-dir", str(folder / models)]
    return main(["restore", *arguments, "--input", str(archive)])


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p): digest_of(p) for p in folder.rglob("*") if p.is_file() and "sqlite" not in p.name
    }


@pytest.mark.parametrize("name", ["backup.tar", "backup.tar.gz"])
def test_everything_is_restored_into_an_empty_folder(
    store: FolderStore, tmp_path: Path, name: str
) -> None:
    for shift, image_id in ((0, "a"), (1, "a"), (2, "b")):
        save(store, tmp_path, shift, image_id)
    store.remove_label("b", "final")
    weights = build_network(TINY).state_dict()
    version = save_model(tmp_path / "models", weights, TINY, {"note": "ours"})
    Registry(tmp_path / "models").publish(version, reason="for a test")
    archive = create(tmp_path, name)
    (tmp_path / "new").mkdir()
    assert restore(tmp_path, archive, "new", "new_models") == 0
    back = open_store(tmp_path / "new")
    assert back.history.records() == store.history.records()
    back.watcher.run()
    assert digest_of(final(tmp_path / "new")) == digest_of(final(tmp_path / "studies"))
    assert not final(tmp_path / "new", "b.nii.gz").exists()
    assert Registry(tmp_path / "new_models").published_version() == version
    assert load_model(tmp_path / "new_models" / f"{version}.safetensors").card["note"] == "ours"
    assert back.history.restore_from_files() == 0


def test_restoring_merges_and_overwrites_nothing(store: FolderStore, tmp_path: Path) -> None:
    save(store, tmp_path, 0)
    archive = create(tmp_path)
    save(store, tmp_path, 1)
    before, files = store.history.records(), contents(tmp_path / "studies")
    assert restore(tmp_path, archive) == 0
    assert store.history.records() == before
    assert contents(tmp_path / "studies") == files
    # A folder that went its own way since.
    other = new_store(tmp_path / "other")
    save(other, tmp_path, 5)
    save(other, tmp_path, 6, "b")
    assert restore(tmp_path, archive, "other") == 0
    other.watcher.run()
    versions = other.history.history("a", "final")
    assert [(v.number, v.client) for v in versions] == [(2, "0"), (1, "5")]
    assert other.history.current()[0].client == "5"
    assert digest_of(final(tmp_path / "other")) == other.history.current()[0].digest
    assert len(other.history.current()) == 2


def test_a_newer_version_in_the_backup_becomes_current(store: FolderStore, tmp_path: Path) -> None:
    save(store, tmp_path, 0)
    first = create(tmp_path, "first.tar")
    (tmp_path / "other").mkdir()
    write_ct(tmp_path / "other" / "a.nii.gz", make_ct())
    assert restore(tmp_path, first, "other") == 0
    other = open_store(tmp_path / "other")
    other.watcher.run()
    save(store, tmp_path, 1)
    assert restore(tmp_path, create(tmp_path, "second.tar"), "other") == 0
    other.watcher.run()
    final(tmp_path / "other").touch()
    assert [v.number for v in other.history.current()] == [2]
    assert other.get_labeled_images() == ["a"]


def test_decisions_are_restored_where_there_are_none(store: FolderStore, tmp_path: Path) -> None:
    rows: Callable[[str], list[object]] = lambda why: [  # noqa: E731 - new rows each time
        CaseSet(image_id="a", set="referee", why=why),
        Setting(key="pause", value=True, by=why),
        Promotion(version="v1", reason=why, by="eve"),
    ]
    for studies, why in (("studies", "there"), ("other", "here")):
        database = Database(tmp_path / studies / ".organnet" / "workflow.sqlite")
        with database.writing() as session:
            session.add_all(rows(why))
            session.add(CaseSet(image_id=f"only_{why}", set="train", why=why))
        database.close()
    archive = create(tmp_path)
    for studies in ("other", "empty"):
        assert restore(tmp_path, archive, studies) == 0
    database = Database(tmp_path / "other" / ".organnet" / "workflow.sqlite")
    with database.reading() as session:
        assert {c.image_id: c.why for c in session.query(CaseSet)} == {
            "a": "here", "only_here": "here", "only_there": "there",
        }  # fmt: skip
        assert [p.reason for p in session.query(Promotion)] == ["here"]
        assert [s.by for s in session.query(Setting)] == ["here"]
    empty = Database(tmp_path / "empty" / ".organnet" / "workflow.sqlite")
    with empty.reading() as session:
        assert [p.reason for p in session.query(Promotion)] == ["there"]


def test_edit_costs_are_restored_with_their_labels(store: FolderStore, tmp_path: Path) -> None:
    save(store, tmp_path, 1, "a")
    save(store, tmp_path, 2, "b")
    database = Database(tmp_path / "studies" / ".organnet" / "workflow.sqlite")
    second = store.history.current()[1]
    EditCostRecords(database).add(second, None, was_trained_on=False, error="of b")
    archive = create(tmp_path)
    other = new_store(tmp_path / "other")
    # The ids of labels are others there.
    save(other, tmp_path, 3, "a")
    assert restore(tmp_path, archive, "other") == 0
    (restored,) = EditCostRecords(
        Database(tmp_path / "other" / ".organnet" / "workflow.sqlite")
    ).curve()
    assert (restored.label.image_id, restored.cost.error) == ("b", "of b")
    assert restored.label.id != second.id


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def one_bit(path: Path) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    # Within the label volume: after it in the archive come the records and the checksums.
    content[content.index(b".nii.gz") + 1000] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))


def another_file(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.add(ROOT / "README.md", "../../README.md")


def no_archive(path: Path) -> None:
    path.write_bytes(b"<html>")


@pytest.mark.parametrize("damage", [cut_short, one_bit, another_file, no_archive, Path.unlink])
def test_a_damaged_archive_changes_nothing(
    store: FolderStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    save(store, tmp_path, 0)
    archive = create(tmp_path)
    damage(archive)
    other = new_store(tmp_path / "other")
    save(other, tmp_path, 5)
    before = contents(tmp_path / "other")
    assert restore(tmp_path, archive, "other") == 1
    output = capsys.readouterr().err
    assert "nothing was restored" in output or "there is no such file" in output
    assert contents(tmp_path / "other") == before
    assert len(other.history.records()) == 1


def test_a_lost_volume_is_named_and_the_rest_is_saved(
    store: FolderStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, tmp_path, 0)
    save(store, tmp_path, 1, "b")
    store.history.path(store.history.current()[0].digest).unlink()
    arguments = ["--studies", str(tmp_path / "studies"), "--model-dir", str(tmp_path / "models")]
    assert main(["create", *arguments, "--output", str(tmp_path / "b.tar")]) == 1
    assert "not saved, missing or damaged: label volume" in capsys.readouterr().err
    assert restore(tmp_path, tmp_path / "b.tar", "new") == 0
    assert [r["image_id"] for r in open_store(tmp_path / "new").history.records()] == ["b"]


def test_a_folder_without_a_server_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--studies", str(tmp_path), "--output", str(tmp_path / "b.tar")]
    assert main(["create", *arguments]) == 1
    assert "give the --studies that the server was started with" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_backup_of_a_busy_store_is_of_one_moment(store: FolderStore, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    is_over = threading.Event()
    answered: list[int] = []

    def submit() -> None:
        while not is_over.is_set():
            save(store, tmp_path, len(answered), "ab"[len(answered) % 2])
            answered.append(len(answered))

    submitting = threading.Thread(target=submit)
    submitting.start()
    try:
        while len(answered) < 3:
            is_over.wait(0.05)
        before = len(answered)
        command = [sys.executable, "-m", "apps.backup", "create", "--studies",
                   str(tmp_path / "studies"), "--output", str(tmp_path / "busy.tar")]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        after = len(answered)
    finally:
        is_over.set()
        submitting.join()
    assert restore(tmp_path, tmp_path / "busy.tar", "new") == 0
    back = open_store(tmp_path / "new").history
    versions = [v for i in "ab" for v in back.history(i, "final")]
    assert before <= len(versions) <= after + 1
    assert {int(v.client) for v in versions} == set(range(len(versions)))
    assert all(digest_of(back.path(v.digest)) == v.digest for v in versions)
