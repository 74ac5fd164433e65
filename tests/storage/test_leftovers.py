import os
import tempfile
import time
from pathlib import Path

import pytest

from lib.storage.leftovers import ABANDONED_S, remove_abandoned_scratch, remove_unfinished


def test_only_abandoned_unfinished_files_are_removed(
    tmp_path: Path,
) -> None:
    (tmp_path / "labels").mkdir()
    kept = [tmp_path / "scan.nii.gz", tmp_path / "labels" / ".writing-now-scan.nii.gz"]
    left = tmp_path / "labels" / ".writing-old-scan.nii.gz"
    for path in (*kept, left):
        path.write_text("x")
    long_ago = time.time() - ABANDONED_S - 1
    for path in (kept[0], left):
        os.utime(path, (long_ago, long_ago))
    assert remove_unfinished(tmp_path) == 1
    assert not left.exists()
    assert all(path.exists() for path in kept)


def test_only_own_abandoned_scratch_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, used = tmp_path / "organnet-upload-old", tmp_path / "organnet-upload-used"
    others = tmp_path / "another-user"
    for folder in (left, used, others):
        folder.mkdir()
        (folder / "00000.nii.gz").write_text("x")
    long_ago = time.time() - ABANDONED_S - 1
    # A long upload: the folder is old, but a file in it is still being written.
    for path in (left / "00000.nii.gz", left, used, others / "00000.nii.gz", others):
        os.utime(path, (long_ago, long_ago))
    assert remove_abandoned_scratch() == 1
    assert sorted(tmp_path.iterdir()) == sorted([used, others])
