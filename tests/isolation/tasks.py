"""Tasks of the tests: what a damaged file, or one built to harm the server, makes a reader do."""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import GeometryError
from lib.isolation.array_transfer import Array, ArrayStream
from lib.isolation.transfer_window import PART_BYTES, WINDOW_BYTES

Result = tuple[Mapping[str, Any], Array | None]


def numbers(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Return the arguments, and an array of a shape and a type."""
    count = int(np.prod(arguments["shape"]))
    values = np.arange(count).astype(arguments["dtype"])
    return arguments, values.reshape(arguments["shape"], order=arguments["order"])


def die(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """End this process by a signal."""
    if arguments["signal"] == signal.SIGSEGV:
        ctypes.string_at(0)
    os.kill(os.getpid(), arguments["signal"])
    return {}, None


def loop(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Never end."""
    while True:
        pass


def take_memory(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Fill memory."""
    return {}, np.ones(arguments["bytes"], np.uint8)


def refuse(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Raise an exception of this project."""
    raise GeometryError("case7: refused")


def fail(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Raise another exception."""
    raise IndexError("list index out of range")


def processes(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Return the ids of this process and of its template."""
    return {"template": os.getppid(), "reader": os.getpid(), **arguments}, None


def attempt(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Return how an attempt to reach beyond the file ended."""
    path = Path(arguments["file"])
    attempts: dict[str, Callable[[], object]] = {
        "read the file": path.read_bytes,
        "read another file": Path(arguments["other"]).read_bytes,
        "list another folder": lambda: os.listdir(Path(arguments["other"]).parent),  # noqa: PTH208
        "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
        "write the file": lambda: path.write_bytes(b"changed"),
        "append to the file": lambda: path.open("ab").close(),
        "make a file": lambda: path.with_name("new").touch(),
        "make a folder": lambda: path.with_name("new").mkdir(),
        "remove the file": path.unlink,
        "rename the file": lambda: path.rename(path.with_name("new")),
        "link the file": lambda: path.with_name("new").symlink_to(path),
        "change rights": lambda: path.chmod(0o777),
        "make shared memory": lambda: os.memfd_create("new"),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "fork": os.fork,
        "end the server": lambda: os.kill(arguments["server"], signal.SIGTERM),
        "look into the server": lambda: Path(f"/proc/{arguments['server']}/environ").read_bytes(),
        "read the environment": lambda: dict(os.environ)["ORGANNET_TEST_SECRET"],
    }
    try:
        attempts[arguments["attempt"]]()
    except (OSError, KeyError) as error:
        return {"outcome": type(error).__name__}, None
    return {"outcome": "done"}, None


def log(arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Log a text."""
    logging.getLogger("lib.imaging.dicom_series").info("%s", arguments["text"])
    return {}, None


def numbers_in_pieces(arguments: Mapping[str, Any], stream: ArrayStream, /) -> Result:
    """Send an array piece by piece, then end as the arguments say."""
    array = np.arange(arguments["count"], dtype=np.int32)
    if arguments["first"] is not None:
        stream.begin([arguments["first"]], np.dtype(np.float64))
        stream.write(np.full(min(10, arguments["first"]), 1.5))
    stream.begin(array.shape, array.dtype)
    for start in range(0, arguments["sent"], 1000):
        stream.write(array[start : min(start + 1000, arguments["sent"])])
    if arguments["then"] == "refuse":
        raise GeometryError("case7: refused")
    if arguments["then"] == "die":
        ctypes.string_at(0)
    return {}, None


def outlast_the_limit(arguments: Mapping[str, Any], stream: ArrayStream, /) -> Result:
    """Ignore the end of the time, and wait for ever, or send an array of which a piece comes now and then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    if arguments["sends"] == "pieces":
        stream.begin([2**28], np.dtype(np.uint8))
    while True:
        if arguments["sends"] == "pieces":
            stream.write(np.zeros(PART_BYTES, np.uint8))
        time.sleep(0.05)


def cut_the_window(_arguments: Mapping[str, Any], stream: ArrayStream, /) -> Result:
    """Try to make all open files shorter while an array travels; return how that ended."""
    array = np.arange(3 * WINDOW_BYTES, dtype=np.uint8)
    stream.begin(array.shape, array.dtype)
    outcomes = {}
    for descriptor in range(64):
        is_window = False
        try:
            is_window = os.fstat(descriptor).st_size == WINDOW_BYTES
            os.ftruncate(descriptor, 0)
            outcomes[descriptor] = "done"
        except OSError as error:
            if is_window:
                outcomes[descriptor] = type(error).__name__
    stream.write(array)
    return {"outcomes": list(outcomes.values())}, None


_warmed_up_in: list[int] = []


def warm_up() -> None:
    """Remember that this process, or the one that it was forked from, was warmed up."""
    _warmed_up_in.append(os.getpid())


def warmed_up(_arguments: Mapping[str, Any], _stream: ArrayStream, /) -> Result:
    """Return which processes were warmed up before the task."""
    names = {os.getppid(): "template", os.getpid(): "reader"}
    return {"processes": [names[pid] for pid in _warmed_up_in]}, None
