import json
import shutil
from pathlib import Path

import pytest

from lib.errors import DatastoreError
from lib.labels.quarantine import HEAD_BYTES, Quarantine

ABOUT = {"image": "a", "tag": "final", "user": "ada", "reason": "it is a web page"}


def refused(folder: Path, content: bytes) -> Path:
    path = folder / "sent.nii.gz"
    path.write_bytes(content)
    return path


def make_old(quarantine: Quarantine, message: str, day: str) -> None:
    """Rename an entry as if it had been stored on `day`."""
    name = message.rpartition("/")[2]
    (quarantine.folder / name).rename(quarantine.folder / (day + name[8:]))


def test_a_refused_file_is_kept_with_the_reason(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    message = quarantine.keep(refused(tmp_path, b"<html>"), ABOUT, suffix=".nii.gz")
    (entry,) = quarantine.entries()
    assert message == f"kept as quarantine/{entry['name']}"
    assert entry.items() >= {**ABOUT, "bytes": 6, "is_whole": True}.items()
    path = quarantine.file(entry["name"])
    assert path.read_bytes() == b"<html>"
    assert json.loads((path.parent / "why.json").read_text())["reason"] == "it is a web page"


@pytest.mark.parametrize("name", ["", "..", "../labels", "20200101T000000000000Z-00000000"])
def test_an_unknown_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatastoreError, match="no file of that name"):
        Quarantine(tmp_path).file(name)


def test_the_oldest_files_are_removed_when_it_is_full(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, limit_bytes=6000)
    for number, day in enumerate(("20200101", "20200102", "20200103")):
        file = refused(tmp_path, bytes([number]) * 1500)
        make_old(quarantine, quarantine.keep(file, ABOUT, suffix=".nii.gz"), day)
    quarantine.keep(refused(tmp_path, b"x" * 1500), ABOUT, suffix=".nii.gz")
    assert [e["name"][:8] for e in quarantine.entries()][1:] == ["20200103", "20200102"]


def test_recent_files_stay_and_only_the_beginning_of_the_next_is_kept(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, limit_bytes=3 * HEAD_BYTES)
    first = quarantine.keep(refused(tmp_path, b"a" * 2 * HEAD_BYTES), ABOUT, suffix=".nii.gz")
    message = quarantine.keep(refused(tmp_path, b"b" * 2 * HEAD_BYTES), ABOUT, suffix=".nii.gz")
    assert message.startswith("too large for the quarantine, its beginning is kept as quarantine/")
    newest, oldest = quarantine.entries()
    assert first.endswith(oldest["name"])
    assert (newest["bytes"], newest["is_whole"]) == (2 * HEAD_BYTES, False)
    assert quarantine.file(newest["name"]).stat().st_size == HEAD_BYTES


def test_an_unwritable_quarantine_is_reported(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    (tmp_path / "quarantine").write_text("a file where the folder should be")
    message = quarantine.keep(refused(tmp_path, b"x"), ABOUT, suffix=".nii.gz")
    assert message.startswith("not kept in quarantine (")
    (tmp_path / "quarantine").unlink()
    shutil.rmtree(tmp_path)
