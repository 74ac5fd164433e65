import gzip
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from lib.errors import DatastoreError, StateError
from lib.labels.history import LabelHistory, Provenance
from lib.storage.atomic_files import digest_of
from lib.storage.database import Database
from lib.storage.tables import LabelVersion

CLIENT = Provenance(
    source="client",
    author="ada",
    client="slicer",
    model_version="organnet25d-openkbp-0a1b2c3d",
    organs=("Brainstem", "Parotid_L"),
    info={"client_id": "slicer", "level": "difficult"},
)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "state" / "workflow.sqlite")


@pytest.fixture
def history(database: Database, tmp_path: Path) -> LabelHistory:
    return LabelHistory(database, tmp_path / "state")


def volume(folder: Path, text: str) -> Path:
    path = folder / "label.nii.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


def add(history: LabelHistory, folder: Path, text: str, image_id: str = "a") -> LabelVersion:
    return history.add(image_id, "final", volume(folder, text), CLIENT)


def test_a_version_stores_its_file_and_provenance(history: LabelHistory, tmp_path: Path) -> None:
    added = add(history, tmp_path, "one")
    (stored,) = history.current()
    assert (stored.number, stored.parent_id, stored.source) == (1, None, "client")
    assert (stored.author, stored.client, stored.model_version) == (
        "ada",
        "slicer",
        CLIENT.model_version,
    )
    assert (stored.organs, stored.info) == (["Brainstem", "Parotid_L"], dict(CLIENT.info))
    path = history.path(stored.digest)
    assert path.read_bytes() == (tmp_path / "label.nii.gz").read_bytes()
    assert digest_of(path) == stored.digest == added.digest
    assert path.stat().st_mode & 0o777 == 0o444


def test_missing_organs_of_a_version_are_returned(history: LabelHistory, tmp_path: Path) -> None:
    first = add(history, tmp_path, "one")
    part = replace(CLIENT, organs=("Parotid_L", "Larynx"))
    second = history.add("a", "final", volume(tmp_path, "two"), part)
    assert history.missing_organs(first) == ()
    assert history.missing_organs(second) == ("Brainstem",)
    restored = history.restore("a", "final", 1, "eve")
    assert history.missing_organs(restored) == ("Larynx",)


def test_a_second_label_becomes_version_2(history: LabelHistory, tmp_path: Path) -> None:
    first, second = add(history, tmp_path, "one"), add(history, tmp_path, "two")
    assert (second.number, second.parent_id) == (2, first.id)
    assert [v.number for v in history.history("a", "final")] == [1, 2]
    assert [v.number for v in history.current()] == [2]
    assert history.path(first.digest).is_file()


def test_versions_with_equal_content_share_one_file(history: LabelHistory, tmp_path: Path) -> None:
    first, second = add(history, tmp_path, "one"), add(history, tmp_path, "one", "b")
    assert first.digest == second.digest
    assert [v.image_id for v in history.current()] == ["a", "b"]
    assert len(list(history.folder.rglob("*.nii.gz"))) == 1


def test_a_damaged_volume_is_written_again(history: LabelHistory, tmp_path: Path) -> None:
    path = history.path(add(history, tmp_path, "one").digest)
    path.chmod(0o644)
    path.write_bytes(b"damaged bytes")
    with pytest.raises(StateError, match="version 1 is damaged"):
        history.restore("a", "final", 1, "eve")
    add(history, tmp_path, "one")
    assert gzip.decompress(path.read_bytes()) == b"one"


def test_hidden_versions_stay_in_the_history(history: LabelHistory, tmp_path: Path) -> None:
    add(history, tmp_path, "one")
    add(history, tmp_path, "two")
    assert history.hide("a", "final") == 2
    assert history.current() == []
    assert history.newest("a", "final") is None
    assert all(v.hidden_at for v in history.history("a", "final"))
    third = add(history, tmp_path, "three")
    assert (third.number, third.parent_id) == (3, None)
    assert [v.number for v in history.current()] == [3]


def test_restored_version_is_a_new_one_with_the_old_content(
    history: LabelHistory, tmp_path: Path
) -> None:
    first, second = add(history, tmp_path, "one"), add(history, tmp_path, "two")
    restored = history.restore("a", "final", 1, "eve")
    assert (restored.number, restored.digest, restored.parent_id) == (3, first.digest, second.id)
    assert (restored.source, restored.author) == ("restore", "eve")
    assert restored.organs == first.organs
    assert [v.number for v in history.current()] == [3]
    with pytest.raises(DatastoreError, match="a: label 'final' has no version 9"):
        history.restore("a", "final", 9, "eve")


def test_a_new_label_is_current_even_if_the_clock_was_set_back(
    database: Database, history: LabelHistory, tmp_path: Path
) -> None:
    first = add(history, tmp_path, "one")
    with database.writing() as session:
        row = session.get_one(LabelVersion, first.id)
        row.submitted_at += timedelta(days=1)
    add(history, tmp_path, "two")
    assert [v.number for v in history.current()] == [2]


def test_a_lost_database_is_filled_again_from_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    database = Database(folder / "workflow.sqlite")
    history = LabelHistory(database, folder)
    for text in ("one", "two", "three"):
        add(history, tmp_path, text)
    add(history, tmp_path, "other", "b")
    history.hide("b", "final")
    before = history.records()
    database.close()
    (folder / "workflow.sqlite").write_bytes(b"no database at all, but some bytes" * 100)
    reopened = LabelHistory(Database(folder / "workflow.sqlite"), folder)
    assert reopened.records() == []
    assert reopened.restore_from_files() == 4
    assert reopened.records() == before
    assert reopened.restore_from_files() == 0
    assert list(folder.glob("workflow.sqlite.damaged-*"))
    third = reopened.newest("a", "final")
    assert third is not None
    assert not third.is_in_place


def test_a_record_of_an_earlier_program_is_read_without_changes(tmp_path: Path) -> None:
    history = open_history(tmp_path / "old")
    changed = replace(CLIENT, changes=("'Chiasm' was stored as OpticChiasm",), unchanged_from="v1")
    history.add("a", "final", volume(tmp_path, "one"), changed)
    (record,) = history.records()
    assert record["changes"] == ["'Chiasm' was stored as OpticChiasm"]
    file = history.folder / "history" / "a" / "final-1.json"
    assert json.loads(file.read_text()) == record
    assert record["unchanged_from"] == "v1"
    del record["changes"], record["unchanged_from"]
    file.write_text(json.dumps(record))
    (tmp_path / "old" / "workflow.sqlite").unlink()
    reopened = open_history(tmp_path / "old")
    assert reopened.restore_from_files() == 1
    (version,) = reopened.history("a", "final")
    assert (version.changes, version.unchanged_from) == ([], None)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"image_id": "../../etc/passwd"}',
    ],
)
def test_a_damaged_record_is_left_out(
    history: LabelHistory, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    add(history, tmp_path, "one")
    (history.folder / "history" / "a" / "final-2.json").write_bytes(damage)
    assert history.restore_from_files() == 0
    assert "a/final-2.json cannot be read" in caplog.text
    # Its number is not used again, because the record may be repaired later.
    assert add(history, tmp_path, "two").number == 3


def open_history(folder: Path) -> LabelHistory:
    return LabelHistory(Database(folder / "workflow.sqlite"), folder)


def test_merged_versions_are_ordered_by_time_and_get_free_numbers(tmp_path: Path) -> None:
    local, remote = open_history(tmp_path / "local"), open_history(tmp_path / "remote")
    add(remote, tmp_path, "remote 1")
    add(local, tmp_path, "local 1")
    add(remote, tmp_path, "remote 2")
    add(local, tmp_path, "local 2")
    for version in remote.history("a", "final"):
        local.keep_volume(remote.path(version.digest))
    records = json.loads(json.dumps(remote.records()))
    assert local.merge(records) == 2
    assert local.merge(records) == 0
    merged = local.history("a", "final")
    assert [gzip.decompress(local.path(v.digest).read_bytes()) for v in merged] == [
        b"remote 1", b"local 1", b"remote 2", b"local 2",
    ]  # fmt: skip
    assert [v.number for v in merged] == [3, 1, 4, 2]
    assert merged[2].parent_id == merged[0].id
    assert [v.number for v in local.current()] == [2]


def test_a_label_deleted_later_stays_deleted_after_a_merge(tmp_path: Path) -> None:
    local, remote = open_history(tmp_path / "local"), open_history(tmp_path / "remote")
    add(remote, tmp_path, "remote")
    add(local, tmp_path, "local")
    local.hide("a", "final")
    local.keep_volume(tmp_path / "label.nii.gz")
    (version,) = remote.current()
    local.keep_volume(remote.path(version.digest))
    assert local.merge(remote.records()) == 1
    assert local.current() == []
    assert len(local.history("a", "final")) == 2


def test_a_record_without_a_volume_is_left_out(tmp_path: Path) -> None:
    local, remote = open_history(tmp_path / "local"), open_history(tmp_path / "remote")
    add(remote, tmp_path, "remote")
    assert local.merge(remote.records()) == 0
    assert local.current() == []
