"""Tests of the removal of unfinished files: those of killed processes, and of no others."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from lib.storage.atomic_files import replacing
from lib.storage.leftovers import (
    ABANDONED_S,
    remove_abandoned_scratch,
    remove_unfinished,
    scratch_folder,
    scratch_prefix,
    unfinished_prefix,
)
from tests.permissions import forbidden
from tests.waiting import LIMIT_S

KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from lib.storage.atomic_files import replacing
from lib.storage.leftovers import scratch_folder
with replacing(Path(sys.argv[1]) / "labels" / "a.nii.gz") as draft, scratch_folder(Path(sys.argv[1])) as folder:
    with scratch_folder() as scratch, replacing(Path(tempfile.gettempdir()) / "organnet-b.nii.gz"):
        draft.write_text("half")
        (folder / "inner").mkdir()
        (scratch / "upload.nii.gz").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_a_killed_process_left_is_removed_at_once(tmp_path: Path, scratch: Path) -> None:
    studies = tmp_path / "studies"
    (studies / "labels").mkdir(parents=True)
    command = [sys.executable, "-c", KILLED, str(studies)]
    assert subprocess.run(command, timeout=LIMIT_S, check=False).returncode == -9
    # Libraries may put files of their own beside the two.
    upload, draft = sorted(scratch.glob("*organnet-*"))
    assert [len(names(folder)) for folder in (studies, studies / "labels")] == [2, 1]
    assert remove_unfinished(studies, is_recursive=False) == 1
    assert names(studies) == ["labels"]
    assert remove_unfinished(studies) == 1
    assert names(studies / "labels") == []
    assert remove_abandoned_scratch() == 2
    assert not upload.exists()
    assert not draft.exists()


def test_files_of_a_process_that_runs_are_kept(tmp_path: Path, scratch: Path) -> None:
    long_ago = time.time() - 2 * ABANDONED_S
    with (
        replacing(tmp_path / "a.nii.gz") as file,
        scratch_folder(tmp_path) as folder,
        scratch_folder() as upload,
    ):
        assert (file.parent, folder.parent, upload.parent) == (tmp_path, tmp_path, scratch)
        for path in (file, folder, upload):
            os.utime(path, (long_ago, long_ago))
        assert remove_unfinished(tmp_path) == 0
        assert remove_abandoned_scratch() == 0
        assert all(path.exists() for path in (file, folder, upload))


@pytest.mark.parametrize("prefix", [unfinished_prefix, scratch_prefix])
def test_a_name_is_that_of_one_process_of_one_machine(prefix: object) -> None:
    assert callable(prefix)
    head, machine, pid, start = str(prefix()).rstrip("-").rsplit("-", 3)
    assert head in (".writing", "organnet")
    assert len(machine) == 8
    assert int(pid) == os.getpid()
    # Field 22 of proc(5).
    status = Path("/proc/self/stat").read_text(encoding="ascii")
    assert start == status.rpartition(")")[2].split()[19]


def test_a_file_of_a_process_number_that_was_given_again_is_removed(tmp_path: Path) -> None:
    machine = unfinished_prefix().split("-")[1]
    (tmp_path / f".writing-{machine}-{os.getpid()}-1-x.json").touch()
    (tmp_path / f"{unfinished_prefix()}x.json").touch()
    assert remove_unfinished(tmp_path) == 1
    assert names(tmp_path) == [f"{unfinished_prefix()}x.json"]


def test_files_of_another_machine_are_removed_after_an_hour(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "labels").mkdir()
    kept = [tmp_path / "scan.nii.gz", tmp_path / "labels" / ".writing-0123abcd-1-1-scan.nii.gz"]
    left = [
        tmp_path / "labels" / n for n in (".writing-0123abcd-1-1-b.nii.gz", ".writing-old-a.nii.gz")
    ]
    left_scratch, used, others = (
        scratch / n for n in ("organnet-upload-old", "organnet-upload-used", "another-user")
    )
    for path in (*kept, *left):
        path.write_text("x")
    for folder in (left_scratch, used, others):
        folder.mkdir()
        (folder / "00000.nii.gz").write_text("x")
    long_ago = time.time() - ABANDONED_S - 1
    # A long upload: the folder is old, but a file in it is still being written.
    inner = [left_scratch / "00000.nii.gz", others / "00000.nii.gz"]
    for path in (kept[0], *left, *inner, left_scratch, used, others):
        os.utime(path, (long_ago, long_ago))
    assert remove_unfinished(tmp_path) == 2
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in left)
    assert remove_abandoned_scratch() == 1
    assert names(scratch) == ["another-user", "organnet-upload-used"]


def test_folders_that_cannot_be_read_or_written_are_left_as_they_are(tmp_path: Path) -> None:
    machine = unfinished_prefix().split("-")[1]
    for name in ("closed", "read-only", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f".writing-{machine}-{os.getpid()}-1-x").touch()
    (tmp_path / ".writing-loop").symlink_to(".writing-loop")
    with forbidden(tmp_path / "closed"), forbidden(tmp_path / "read-only", mode=0o555):
        remove_unfinished(tmp_path)
    assert [len(names(tmp_path / n)) for n in ("closed", "read-only", "open")] == [1, 1, 0]


def test_a_scratch_folder_that_cannot_be_removed_hides_no_error(tmp_path: Path) -> None:
    parent = tmp_path / "studies"
    parent.mkdir()

    def fill_and_fail() -> None:
        with scratch_folder(parent) as folder:
            (folder / "upload.nii.gz").write_text("half")
            stack.enter_context(forbidden(parent, mode=0o555))
            raise ValueError("the reason")

    with ExitStack() as stack, pytest.raises(ValueError, match="the reason"):
        fill_and_fail()
    assert [name.startswith(unfinished_prefix()) for name in names(parent)] == [True]
