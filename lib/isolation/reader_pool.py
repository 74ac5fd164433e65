"""The pool of reader processes of this process, and its answer when a reader dies."""

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import lib.errors
from lib.errors import OrganNetError, ReaderStoppedError, ScanError
from lib.isolation.array_transfer import (
    Array,
    ArrayReceiver,
    ArrayTooLargeError,
    ArrayTransferError,
    Arrived,
)
from lib.isolation.confinement import missing_protections
from lib.isolation.inputs import Input
from lib.isolation.limits import MEMORY_VARIABLE, Limits
from lib.isolation.messages import (
    MessageError,
    connected_pair,
    receive,
    remaining_s,
    send,
)
from lib.isolation.reader import MAX_LOG_LINES, MAX_TEXT, OUT_OF_MEMORY, UNEXPECTED
from lib.isolation.transfer_window import new_window

_log = logging.getLogger(__name__)

_APP_DIR = Path(__file__).parents[2]
_MOST_READERS = 2
_MOST_REMEMBERED = 500
_GRACE_S = 30.0
"""Time in s beyond a reader's own limit after which the server ends the template."""
_MOST_ARRAYS = 2
"""Arrays of one task; the last one counts."""
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ", MEMORY_VARIABLE)
"""Variables that a template gets; the others may hold passwords."""
_FAULT_OF_FILE = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL,
                  signal.SIGXCPU, signal.SIGXFSZ, signal.SIGSYS)  # fmt: skip
"""Signals that the same file would cause again."""


class _TemplateEndedError(Exception):
    """The template ended, and its readers with it; not the fault of a file."""


class _Template:
    """A template process, seen from the process that started it."""

    def __init__(self, modules: Sequence[str]) -> None:
        control, theirs = connected_pair()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"PYTHONPATH": str(_APP_DIR), "OPENBLAS_NUM_THREADS": "1",
                        "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lib.isolation.template_process"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd=_APP_DIR,
                env=environment,
            )
        self._control = control
        self._mutex = threading.Lock()
        self._send({"modules": modules})

    @contextmanager
    def reader(self, job: Mapping[str, Any]) -> Iterator[tuple[socket.socket, socket.socket, int]]:
        """Start a reader; yield the connection to it, and the socket and the window of its arrays.

        Raises:
            _TemplateEndedError: If the template has ended.
        """
        with ExitStack() as stack:
            ours, theirs = map(stack.enter_context, connected_pair())
            our_signals, their_signals = map(stack.enter_context, socket.socketpair())
            window = new_window()
            stack.callback(os.close, window)
            self._send(job, [theirs.fileno(), their_signals.fileno(), window])
            theirs.close()
            their_signals.close()
            yield ours, our_signals, window

    def _send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            with self._mutex:
                send(self._control, message, descriptors)
        except OSError as error:
            raise _TemplateEndedError from error

    def end(self) -> None:
        """End the template and its readers."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Close the connection in a process that was forked, to which the template does not belong."""
        self._control.close()
        self._process.returncode = 0  # no warning about a child that is not its own


class ReaderPool:
    """Reader processes for one file each; two at once at most, the others wait.

    Args:
        most: Largest number of readers at once.
    """

    def __init__(self, most: int = _MOST_READERS) -> None:
        self.modules: list[str] = []
        """Modules of tasks that a template imports at its start; others are imported with their first task.

        A module may have a function `warm_up` (`lib.isolation.reader.warm_up`).
        """
        self._slots = threading.BoundedSemaphore(min(most, os.cpu_count() or 1))
        self._mutex = threading.Lock()
        self._template: _Template | None = None
        self._refused: OrderedDict[Path, tuple[Any, str]] = OrderedDict()

    def start(self) -> None:
        """Start the template, if it does not run, without waiting for its imports."""
        with suppress(_TemplateEndedError):
            self._running_template()

    def run(
        self,
        task: str,
        arguments: Mapping[str, Any],
        *,
        path: Path,
        case: str,
        limits: Limits | None = None,
        arrived: Arrived | None = None,
    ) -> tuple[dict[str, Any], Array | None]:
        """Return the result and the array of a task that a reader runs on a file.

        Args:
            task: `module:function`, a `lib.isolation.reader.Task`.
            arguments: Its arguments; JSON must be able to hold them.
            path: The file or folder that the reader may read; a folder with its subfolders.
            case: For messages.
            limits: What the reader may use; None for `Limits.of_input`.
            arrived: Called while an array arrives, for each of its voxels once; again from the beginning if the
                reader sends another array in its place.

        Raises:
            OrganNetError: The exception that the task raised.
            ReaderStoppedError: If the reader died, or exceeded a limit. If the file caused it, the file is not
                read again until it changes.
            ScanError: If the task failed in another way.
        """
        source = Input(path)
        self._raise_if_refused(source)
        limits = limits or Limits.of_input(source.size_bytes)
        job = {
            "task": task,
            "arguments": arguments,
            "path": str(source.path),
            "limits": limits.as_json(),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        }
        with self._slots:
            try:
                answer, array, end = self._run(job, limits, arrived)
            except _TemplateEndedError:
                # Ended from outside, or with a crowd of others when memory ran out: try once more.
                try:
                    answer, array, end = self._run(job, limits, arrived)
                except _TemplateEndedError as error:
                    raise ReaderStoppedError(
                        f"{case}: {path.name} could not be read: the process that reads files ended twice; "
                        "the server's log may say why"
                    ) from error
        if answer is None:
            raise self._stopped(source, case, limits, end)
        return self._result(answer, path=path, case=case, limits=limits), array

    def refused(self) -> dict[Path, str]:
        """Return the files and folders that ended a reader and have not changed since, with the reason."""
        with self._mutex:
            entries = dict(self._refused)
        return {
            path: reason for path, (state, reason) in entries.items() if Input(path).state == state
        }

    def forget(self) -> None:
        """Drop the template in a forked process; the next file starts another."""
        modules = self.modules
        if self._template is not None:
            self._template.forget()
        self.__init__()  # type: ignore[misc]
        self.modules = modules

    def close(self) -> None:
        """End the template and its readers."""
        with self._mutex:
            template, self._template = self._template, None
        if template is not None:
            template.end()

    def _running_template(self) -> _Template:
        with self._mutex:
            if self._template is None:
                _log_missing_protections()
                self._template = _Template(self.modules)
            return self._template

    def _run(
        self, job: Mapping[str, Any], limits: Limits, arrived: Arrived | None
    ) -> tuple[dict[str, Any] | None, Array | None, dict[str, Any]]:
        """Return the answer of a reader and its array; if it died, None and how it ended.

        Raises:
            _TemplateEndedError: If the template ended before the reader.
        """
        template = self._running_template()
        try:
            with template.reader(job) as (connection, signals, window):
                deadline = time.monotonic() + limits.wall_s + _GRACE_S
                arrays = ArrayReceiver(
                    signals, window, limit_bytes=limits.memory_bytes, deadline=deadline
                )
                return _answer_of(connection, arrays, deadline, arrived)
        except _TemplateEndedError:
            self._drop(template)
            raise
        except (TimeoutError, MessageError) as error:
            # The reader no longer obeys its limits: end it with its template.
            self._drop(template)
            is_late = isinstance(error, TimeoutError)
            return None, None, {"exit": -(signal.SIGALRM if is_late else signal.SIGKILL)}

    def _drop(self, template: _Template) -> None:
        with self._mutex:
            if self._template is template:
                self._template = None
        template.end()

    def _result(
        self, answer: Mapping[str, Any], *, path: Path, case: str, limits: Limits
    ) -> dict[str, Any]:
        _log_lines(answer.get("log"))
        result, name = answer.get("result"), answer.get("error")
        if isinstance(result, dict):
            return result
        text = str(answer.get("text", ""))[:MAX_TEXT]
        if name == OUT_OF_MEMORY:
            raise ScanError(
                f"{case}: reading {path.name} needs more than {limits.memory_bytes / 2**30:.1f} GiB of "
                f"memory, the limit of a reader; {MEMORY_VARIABLE} sets another"
            )
        if name == UNEXPECTED:
            _log.error("%s: %s failed in the reader: %s", case, path.name, text)
            raise ScanError(f"{case}: {path.name} cannot be read ({text}); export it again")
        kind = getattr(lib.errors, str(name), None)
        if isinstance(kind, type) and issubclass(kind, OrganNetError):
            raise kind(text)
        raise ScanError(f"{case}: {path.name} cannot be read; export it again")

    def _raise_if_refused(self, source: Input) -> None:
        with self._mutex:
            state, reason = self._refused.get(source.path, (None, ""))
        if state is not None and state == source.state:
            raise ReaderStoppedError(reason)

    def _stopped(
        self, source: Input, case: str, limits: Limits, end: Mapping[str, Any]
    ) -> ReaderStoppedError:
        """Return the error for a reader that died, and remember the file if it is the cause."""
        number = -int(end["exit"])
        name = signal.Signals(number).name if number in set(signal.Signals) else f"code {-number}"
        kinds = {
            signal.SIGXCPU: f"reading took more than {limits.cpu_s} s of processor time, the limit",
            signal.SIGALRM: f"reading took more than {limits.wall_s} s, the limit",
            signal.SIGKILL: "its reader was ended from outside (SIGKILL), perhaps because memory ran out",
        }
        if number == signal.SIGKILL and end.get("cpu_s", 0) >= limits.cpu_s:
            number = signal.SIGXCPU
        what = kinds.get(signal.Signals(number), "") if number in set(signal.Signals) else ""
        advice = (
            "read it again later" if number in (signal.SIGKILL, signal.SIGALRM)
            else "the file is damaged, or built to harm the server: export it again"
        )  # fmt: skip
        what = what or (
            f"its reader died ({name})" if number else "its reader gave no valid answer"
        )
        reason = f"{case}: {source.path.name} could not be read: {what}; {advice}"
        _log.warning("%s", reason)
        if number in _FAULT_OF_FILE:
            with self._mutex:
                self._refused[source.path] = (source.state, reason)
                while len(self._refused) > _MOST_REMEMBERED:
                    self._refused.popitem(last=False)
        return ReaderStoppedError(reason)


def _answer_of(
    connection: socket.socket,
    arrays: ArrayReceiver,
    deadline: float,
    arrived: Arrived | None,
) -> tuple[dict[str, Any] | None, Array | None, dict[str, Any]]:
    """Return a reader's answer and its array; if it died before, None and how it ended."""
    array: Array | None = None
    is_whole = True
    announced = 0
    while True:
        connection.settimeout(remaining_s(deadline))
        message, descriptors = receive(connection)
        for descriptor in descriptors:
            os.close(descriptor)
        if message is None:
            raise _TemplateEndedError
        if "exit" in message:
            return None, None, message
        if "array" in message and announced < _MOST_ARRAYS:
            announced += 1
            try:
                array = arrays.receive(message["array"], arrived)
            except ArrayTooLargeError:
                return {"error": OUT_OF_MEMORY}, None, {}
            except ArrayTransferError:
                # The error of the reader follows, or its end.
                is_whole = False
                arrays.stop()
        elif is_whole or "error" in message:
            return message, array if "result" in message else None, {}


def _log_lines(lines: Any) -> None:
    """Log what a reader logged."""
    for line in lines[:MAX_LOG_LINES] if isinstance(lines, list) else ():
        with suppress(ValueError, TypeError):
            name, level, text = line
            logging.getLogger(str(name)[:80]).log(int(level), "%s", str(text)[:MAX_TEXT])


_protections_logged = False


def _log_missing_protections() -> None:
    global _protections_logged
    if not _protections_logged:
        _protections_logged = True
        for protection in missing_protections():
            _log.warning("readers of files are not denied %s on this machine", protection)


_pool = ReaderPool()


def readers() -> ReaderPool:
    """Return the pool of this process."""
    return _pool


atexit.register(_pool.close)
os.register_at_fork(after_in_child=_pool.forget)
