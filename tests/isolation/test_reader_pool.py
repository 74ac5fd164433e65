import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.errors import GeometryError, ReaderStoppedError, ScanError
from lib.isolation import reader_pool
from lib.isolation.limits import Limits
from lib.isolation.reader_pool import ReaderPool
from tests.waiting import wait_until

TASKS = "tests.isolation.tasks"
LIMITS = Limits(memory_bytes=2**28, cpu_s=60, wall_s=600)


@pytest.fixture(scope="module")
def pool() -> Iterator[ReaderPool]:
    made = ReaderPool()
    made.modules.append(TASKS)
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scan.mha"
    path.write_bytes(b"content")
    return path


def run(
    pool: ReaderPool, task: str, path: Path, limits: Limits = LIMITS, **arguments: Any
) -> tuple[Mapping[str, Any], Any]:
    return pool.run(f"{TASKS}:{task}", arguments, path=path, case="case7", limits=limits)


def exists(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- results


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", "bool"])
@pytest.mark.parametrize(
    ("shape", "order"), [((3, 4, 5), "F"), ((3, 4, 5), "C"), ((200, 150, 80), "F"), ((7,), "C")]
)
def test_result_and_array_come_back(
    pool: ReaderPool, file: Path, dtype: str, shape: tuple[int, ...], order: str
) -> None:
    arguments: dict[str, Any] = {"shape": list(shape), "dtype": dtype, "order": order}
    result, array = run(pool, "numbers", file, **arguments)
    assert result == arguments
    expected = np.arange(np.prod(shape)).astype(dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == expected.dtype
    array[...] = 0  # the server may change it


def test_exception_of_this_project_is_raised_as_it_is(pool: ReaderPool, file: Path) -> None:
    with pytest.raises(GeometryError, match=r"^case7: refused$"):
        run(pool, "refuse", file)


def test_other_exception_is_a_scan_error_and_logged(
    pool: ReaderPool, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ScanError, match=r"case7: scan.mha cannot be read \(IndexError: list index"):
        run(pool, "fail", file)
    assert "IndexError" in caplog.text


# --- arrays that are sent before the result


def run_in_pieces(pool: ReaderPool, file: Path, limits: Limits = LIMITS, **given: Any) -> Any:
    arguments = {"count": 300_000, "sent": 300_000, "first": None, "then": "return", **given}
    return run(pool, "numbers_in_pieces", file, limits, **arguments)[1]


@pytest.mark.parametrize("first", [None, 10, 100_000])
def test_last_array_that_is_sent_counts(pool: ReaderPool, file: Path, first: int | None) -> None:
    array = run_in_pieces(pool, file, first=first)
    np.testing.assert_array_equal(array, np.arange(300_000))


@pytest.mark.parametrize("sent", [0, 1000, 300_000])
def test_error_after_some_voxels_is_raised(pool: ReaderPool, file: Path, sent: int) -> None:
    with pytest.raises(GeometryError, match=r"^case7: refused$"):
        run_in_pieces(pool, file, sent=sent, then="refuse")


@pytest.mark.parametrize("sent", [0, 1000, 300_000])
def test_death_after_some_voxels_is_reported(pool: ReaderPool, file: Path, sent: int) -> None:
    with pytest.raises(ReaderStoppedError, match=r"its reader died .SIGSEGV."):
        run_in_pieces(pool, file, sent=sent, then="die")


@pytest.mark.parametrize("sent", [0, 1000, 299_999])
def test_result_without_all_voxels_is_refused(pool: ReaderPool, file: Path, sent: int) -> None:
    with pytest.raises(ReaderStoppedError, match="its reader gave no valid answer"):
        run_in_pieces(pool, file, sent=sent)


def test_announced_array_above_the_limit_of_memory_is_refused(pool: ReaderPool, file: Path) -> None:
    with pytest.raises(ScanError, match=r"more than 0.2 GiB .*ORGANNET_READER_MEMORY_GIB"):
        run_in_pieces(pool, file, first=2**28)


# --- death and limits


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL])
def test_file_that_ends_its_reader_is_not_read_again_until_it_changes(
    pool: ReaderPool, file: Path, number: signal.Signals
) -> None:
    message = rf"case7: scan.mha could not be read: its reader died \({number.name}\); .*export it"
    with pytest.raises(ReaderStoppedError, match=message):
        run(pool, "die", file, signal=number)
    assert number.name in pool.refused()[file]
    with pytest.raises(ReaderStoppedError, match=message):
        run(pool, "numbers", file, shape=[1], dtype="uint8", order="C")
    file.write_bytes(b"another content")
    assert file not in pool.refused()
    run(pool, "numbers", file, shape=[1], dtype="uint8", order="C")


def test_reader_that_is_killed_from_outside_is_no_reason_to_refuse_the_file(
    pool: ReaderPool, file: Path
) -> None:
    with pytest.raises(ReaderStoppedError, match=r"case7: scan.mha .*SIGKILL.*read it again later"):
        run(pool, "die", file, signal=signal.SIGKILL)
    assert file not in pool.refused()
    run(pool, "numbers", file, shape=[1], dtype="uint8", order="C")


def test_endless_loop_ends_at_the_limit_of_processor_time(pool: ReaderPool, file: Path) -> None:
    limits = Limits(memory_bytes=2**28, cpu_s=1, wall_s=600)
    with pytest.raises(ReaderStoppedError, match="more than 1 s of processor time"):
        run(pool, "loop", file, limits)


def test_reader_that_waits_for_ever_ends_at_the_limit_of_time(pool: ReaderPool, file: Path) -> None:
    with pytest.raises(ReaderStoppedError, match="took more than 1 s, the limit"):
        run(pool, "loop", file, Limits(memory_bytes=2**28, cpu_s=600, wall_s=1))


@pytest.mark.parametrize("sends", ["nothing", "pieces"])
def test_reader_that_ignores_the_limit_of_time_is_ended(
    pool: ReaderPool, file: Path, monkeypatch: pytest.MonkeyPatch, sends: str
) -> None:
    monkeypatch.setattr(reader_pool, "_GRACE_S", 0.0)
    limits = Limits(memory_bytes=2**30, cpu_s=600, wall_s=1)
    with pytest.raises(ReaderStoppedError, match="took more than 1 s, the limit"):
        run(pool, "outlast_the_limit", file, limits, sends=sends)
    run(pool, "numbers", file, shape=[1], dtype="uint8", order="C")


def test_reader_cannot_cut_the_memory_that_the_server_reads(pool: ReaderPool, file: Path) -> None:
    result, array = run(pool, "cut_the_window", file)
    assert set(result["outcomes"]) == {"PermissionError"}
    np.testing.assert_array_equal(array, np.arange(array.size, dtype=np.uint8))


def test_memory_is_limited_and_the_message_says_how_to_raise_the_limit(
    pool: ReaderPool, file: Path
) -> None:
    with pytest.raises(ScanError, match=r"more than 0.2 GiB .*ORGANNET_READER_MEMORY_GIB"):
        run(pool, "take_memory", file, bytes=2**29)
    _, array = run(pool, "take_memory", file, bytes=2**20)
    assert array.sum() == 2**20


def test_next_file_is_read_after_the_template_was_killed(pool: ReaderPool, file: Path) -> None:
    result, _ = run(pool, "processes", file)
    os.kill(result["template"], signal.SIGKILL)
    again, _ = run(pool, "processes", file)
    assert again["template"] != result["template"]


def test_many_threads_read_at_once(pool: ReaderPool, file: Path) -> None:
    sums = []

    def read(size: int) -> None:
        _, array = run(pool, "numbers", file, shape=[size], dtype="int64", order="C")
        sums.append(int(array.sum()))

    threads = [threading.Thread(target=read, args=(size,)) for size in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == [size * (size - 1) // 2 for size in range(1, 9)]


# --- confinement


@pytest.fixture
def outcome(
    pool: ReaderPool, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Any]":
    """Return how an attempt of a reader ended: `done`, or the name of the exception."""
    monkeypatch.setenv("ORGANNET_TEST_SECRET", "password")
    other = tmp_path / "other" / "secret.txt"
    other.parent.mkdir()
    other.write_text("another patient", encoding="ascii")

    def attempt(what: str) -> str:
        about: dict[str, Any] = {
            "file": str(file),
            "other": str(other),
            "server": os.getpid(),
            "attempt": what,
        }
        result, _ = run(pool, "attempt", file, **about)
        return str(result["outcome"])

    yield attempt
    assert file.read_bytes() == b"content"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "scan.mha"]


def test_reader_reads_its_file(outcome: Any) -> None:
    assert outcome("read the file") == "done"


@pytest.mark.parametrize(
    "what",
    ["connect", "write the file", "append to the file", "make a file", "make a folder",
     "remove the file", "rename the file", "link the file", "change rights", "make shared memory",
     "start a program", "fork", "end the server"],
)  # fmt: skip
def test_reader_cannot(outcome: Any, what: str) -> None:
    assert outcome(what) == "PermissionError"


@pytest.mark.parametrize(
    "what", ["read another file", "list another folder", "look into the server"]
)
def test_reader_cannot_read_other_files(outcome: Any, what: str) -> None:
    from lib.isolation import file_access

    if not file_access.version():
        pytest.skip("this kernel has no Landlock")
    assert outcome(what) == "PermissionError"


def test_reader_has_no_passwords_of_the_server(outcome: Any) -> None:
    assert outcome("read the environment") == "KeyError"


# --- no process is left


def test_template_ends_with_its_pool(file: Path) -> None:
    pool = ReaderPool()
    result, _ = run(pool, "processes", file)
    pool.close()
    wait_until(lambda: not exists(result["template"]), "the end of the template")


def test_template_and_its_readers_end_with_a_server_that_is_killed(file: Path) -> None:
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from tests.isolation.test_reader_pool import ReaderPool, run\n"
        "pool = ReaderPool(); path = Path(sys.argv[1])\n"
        "result, _ = run(pool, 'processes', path)\n"
        "print(result['template'], result['reader'], flush=True)\n"
        "run(pool, 'loop', path)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    template, first_reader = process.stdout.readline().split()
    children = Path(f"/proc/{template}/task/{template}/children")

    def others() -> set[str]:
        pids = set(children.read_text().split()) - {first_reader}
        return pids if len(pids) > 1 else set()

    left = wait_until(others, "the reader that loops, and the one that waits")
    process.kill()
    process.wait()
    process.stdout.close()
    for pid in map(int, (template, *left)):
        wait_until(lambda pid=pid: not exists(pid), f"the end of process {pid}")  # type: ignore[misc]


def test_forked_process_has_a_template_of_its_own(file: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from lib.isolation.reader_pool import readers\n"
        "from tests.isolation.test_reader_pool import run\n"
        "path = Path(sys.argv[1])\n"
        "print(run(readers(), 'processes', path)[0]['template'], flush=True)\n"
        "if os.fork() == 0:\n"
        "    print(run(readers(), 'processes', path)[0]['template'], flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(run(readers(), 'processes', path)[0]['template'], flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True
    )
    first, in_fork, last = process.communicate()[0].split()
    assert first == last != in_fork


def test_template_and_reader_are_warmed_up_before_the_file_is_known(file: Path) -> None:
    pool = ReaderPool()
    pool.modules.append(TASKS)
    assert run(pool, "warmed_up", file)[0]["processes"] == ["template", "reader"]
    pool.close()


def test_what_a_reader_logs_is_in_the_log_of_the_server(
    pool: ReaderPool, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="lib"):
        run(pool, "log", file, text="ignored 3 files")
    assert ("lib.imaging.dicom_series", logging.INFO, "ignored 3 files") in caplog.record_tuples
