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
    path.write_bytes(gzip.compress(text.encode()))
    return path


def add(history: LabelHistory, folder: Path, text: str, image_id: str = "a") -> LabelVersion:
    return history.add(image_id, "final", volume(folder, text), CLIENT)


def test_a_version_keeps_its_file_and_who_made_it(history: LabelHistory, tmp_path: Path) -> None:
    made = add(history, tmp_path, "one")
    (kept,) = history.current()
    assert (kept.number, kept.parent_id, kept.source) == (1, None, "client")
    assert (kept.author, kept.client, kept.model_version) == ("ada", "slicer", CLIENT.model_version)
    assert (kept.organs, kept.info) == (["Brainstem", "Parotid_L"], dict(CLIENT.info))
    path = history.path(kept.digest)
    assert path.read_bytes() == (tmp_path / "label.nii.gz").read_bytes()
    assert digest_of(path) == kept.digest == made.digest
    assert path.stat().st_mode & 0o777 == 0o444


def test_organs_that_a_version_no_longer_has_are_named(
    history: LabelHistory, tmp_path: Path
) -> None:
    first = add(history, tmp_path, "one")
    part = replace(CLIENT, organs=("Parotid_L", "Larynx"))
    second = history.add("a", "final", volume(tmp_path, "two"), part)
    assert history.missing_organs(first) == ()
    assert history.missing_organs(second) == ("Brainstem",)
    restored = history.restore("a", "final", 1, "rea")
    assert history.missing_organs(restored) == ("Larynx",)


def test_a_second_label_is_a_version_more(history: LabelHistory, tmp_path: Path) -> None:
    first, second = add(history, tmp_path, "one"), add(history, tmp_path, "two")
    assert (second.number, second.parent_id) == (2, first.id)
    assert [v.number for v in history.history("a", "final")] == [1, 2]
    assert [v.number for v in history.current()] == [2]
    assert history.path(first.digest).is_file()


def test_the_same_content_is_one_file_of_two_versions(
    history: LabelHistory, tmp_path: Path
) -> None:
    first, second = add(history, tmp_path, "one"), add(history, tmp_path, "one", "b")
    assert first.digest == second.digest
    assert [v.image_id for v in history.current()] == ["a", "b"]
    assert len(list(history.folder.rglob("*.nii.gz"))) == 1


def test_a_damaged_volume_is_written_again(history: LabelHistory, tmp_path: Path) -> None:
    path = history.path(add(history, tmp_path, "one").digest)
    path.chmod(0o644)
    path.write_bytes(b"bits that fell over")
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


def test_a_clock_that_is_set_back_does_not_make_a_new_label_an_old_one(
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
    again = LabelHistory(Database(folder / "workflow.sqlite"), folder)
    assert again.records() == []
    assert again.restore_from_files() == 4
    assert again.records() == before
    assert again.restore_from_files() == 0
    assert list(folder.glob("workflow.sqlite.damaged-*"))
    third = again.newest("a", "final")
    assert third is not None
    assert not third.is_in_place


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
    # Its number is not given away: what it was may be found out later.
    assert add(history, tmp_path, "two").number == 3


def elsewhere(folder: Path) -> LabelHistory:
    return LabelHistory(Database(folder / "workflow.sqlite"), folder)


def test_merged_versions_come_between_and_take_free_numbers(tmp_path: Path) -> None:
    here, there = elsewhere(tmp_path / "here"), elsewhere(tmp_path / "there")
    add(there, tmp_path, "theirs 1")
    add(here, tmp_path, "ours 1")
    add(there, tmp_path, "theirs 2")
    add(here, tmp_path, "ours 2")
    for version in there.history("a", "final"):
        here.keep_volume(there.path(version.digest))
    records = json.loads(json.dumps(there.records()))
    assert here.merge(records) == 2
    assert here.merge(records) == 0
    merged = here.history("a", "final")
    assert [gzip.decompress(here.path(v.digest).read_bytes()) for v in merged] == [
        b"theirs 1", b"ours 1", b"theirs 2", b"ours 2",
    ]  # fmt: skip
    assert [v.number for v in merged] == [3, 1, 4, 2]
    assert merged[2].parent_id == merged[0].id
    assert [v.number for v in here.current()] == [2]


def test_a_label_that_was_deleted_since_stays_deleted_after_a_merge(tmp_path: Path) -> None:
    here, there = elsewhere(tmp_path / "here"), elsewhere(tmp_path / "there")
    add(there, tmp_path, "theirs")
    add(here, tmp_path, "ours")
    here.hide("a", "final")
    here.keep_volume(tmp_path / "label.nii.gz")
    (version,) = there.current()
    here.keep_volume(there.path(version.digest))
    assert here.merge(there.records()) == 1
    assert here.current() == []
    assert len(here.history("a", "final")) == 2


def test_a_record_without_a_volume_is_left_out(tmp_path: Path) -> None:
    here, there = elsewhere(tmp_path / "here"), elsewhere(tmp_path / "there")
    add(there, tmp_path, "theirs")
    assert here.merge(there.records()) == 0
    assert here.current() == []
