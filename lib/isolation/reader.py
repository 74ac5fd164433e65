"""One reader process: it runs one task on one file, answers, and ends."""

import importlib
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from lib.errors import OrganNetError
from lib.isolation.array_transfer import Array, ArrayStream
from lib.isolation.confinement import Confinement
from lib.isolation.inputs import Input
from lib.isolation.limits import Limits
from lib.isolation.messages import MAX_MESSAGE_BYTES, send

MAX_TEXT = 4000
"""Largest number of characters of an error message or a log line."""
MAX_LOG_LINES = 10
UNEXPECTED = "unexpected"
OUT_OF_MEMORY = "memory"
"""Values of `error` in an answer, beside the names of the exceptions in `lib.errors`."""


class Task(Protocol):
    """A function that a reader calls; JSON can hold its arguments and its result, beside which is an array.

    A task may send the array through the stream before it returns; then it returns None in place of the array.
    """

    def __call__(
        self, arguments: Mapping[str, Any], stream: ArrayStream, /
    ) -> tuple[Mapping[str, Any], Array | None]:
        """Return the result and the array."""


def find_task(name: str) -> Task:
    """Return the function `module:function`."""
    module, _, function = name.partition(":")
    task: Task = getattr(importlib.import_module(module), function)
    return task


def warm_up(modules: Iterable[str]) -> None:
    """Call `warm_up` of those modules of tasks that have one.

    A process that was forked gets its own copy of a page of memory when it first uses it. A reader that waits
    for its file does this in advance.
    """
    for name in modules:
        getattr(sys.modules.get(name), "warm_up", lambda: None)()


class _LogLines(logging.Handler):
    """Collects what `lib` logs, for the log of the server."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) < MAX_LOG_LINES:
            self.lines.append((record.name, record.levelno, record.getMessage()[:MAX_TEXT]))


def run_job(
    connection: socket.socket,
    signals: socket.socket,
    window: int,
    job: Mapping[str, Any],
    confinement: Confinement,
) -> NoReturn:
    """Confine this process, run the task of `job`, send the answer, and end the process.

    Args:
        connection: For the answer.
        signals: For the array, with `window`.
        window: Descriptor of the window through which the array travels.
        job: As `lib.isolation.reader_pool` makes it.
        confinement: Limits to enforce.
    """
    task = find_task(job["task"])
    os.nice(max(0, job["niceness"] - os.getpriority(os.PRIO_PROCESS, 0)))
    log = _LogLines()
    logger = logging.getLogger("lib")
    logger.handlers, logger.propagate = [log], False
    logger.setLevel(logging.INFO)
    confinement.enforce(Limits(**job["limits"]), Input(Path(job["path"])).readable)
    stream = ArrayStream(lambda array: send(connection, {"array": array}), signals, window)
    answer: dict[str, Any]
    try:
        result, array = task(job["arguments"], stream)
        if array is not None:
            stream.send(array)
        answer = {"result": result}
    except OrganNetError as error:
        answer = {"error": type(error).__name__, "text": str(error)[:MAX_TEXT]}
    except MemoryError:
        answer = {"error": OUT_OF_MEMORY}
    except Exception as error:  # noqa: BLE001 - the server reports and logs it
        answer = {"error": UNEXPECTED, "text": f"{type(error).__name__}: {error}"[:MAX_TEXT]}
    with suppress(OSError):
        send(connection, {**answer, "log": log.lines})
    os._exit(0)


assert MAX_MESSAGE_BYTES > (MAX_LOG_LINES + 1) * MAX_TEXT  # noqa: S101 - of constants
