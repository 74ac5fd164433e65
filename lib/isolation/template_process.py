"""The template process: imports the readers, forks a reader for each file, and reports how each ended.

    python -m lib.isolation.template_process    # standard input: a socket, see `reader_pool`

It has a single thread, opens no file that it is told of, and ends with the process that started it.
"""

import gc
import importlib
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from lib.isolation.confinement import Confinement, end_with_parent
from lib.isolation.messages import connected_pair, receive, send
from lib.isolation.reader import find_task, run_job, warm_up

_JOBS = 3
"""Descriptor of a reader's socket for its job; those below are the standard streams."""
_SPARE_AFTER_MS = 100
"""Time that a reader works before the next one is forked."""


@dataclass(slots=True)
class _Reader:
    """A reader that waits for a job, or runs it; the connection of its job, over which its end is reported."""

    pid: int
    jobs: socket.socket
    connection: socket.socket | None = None


class _Template:
    """The state of the template: the readers that it has forked.

    One reader is forked ahead of its job, so that a file does not wait for it. This happens once the reader
    before it has ended, or has worked for a while: a fork takes a processor, which the server may need then.

    Args:
        control: Socket to the process that started the template.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._readers: dict[int, _Reader] = {}
        self._spare: _Reader | None = None
        self._needs_spare = False
        self._modules: list[str] = []

    def serve(self) -> None:
        """Start readers until the other side of `control` is closed."""
        while True:
            events = self._poll.poll(_SPARE_AFTER_MS if self._needs_spare else None)
            has_job = False
            for descriptor, _ in events:
                if descriptor != self._control.fileno():
                    self._poll.unregister(descriptor)
                    self._report(descriptor)
                    continue
                message, descriptors = receive(self._control)
                if message is None:
                    return
                if "modules" in message:
                    self._modules = message["modules"]
                    _preload(self._modules)
                else:
                    self._start(message, descriptors)
                    has_job = True
                self._needs_spare = True
            if self._needs_spare and not has_job:
                self._spare = self._spare or self._fork()
                self._needs_spare = False

    def _start(self, job: dict[str, Any], descriptors: list[int]) -> None:
        """Give a job to the spare reader, or to a new one if it has ended or lacks the module of the task."""
        if job["task"].partition(":")[0] not in sys.modules:
            self._end_spare()
            find_task(job["task"])  # imported before the fork, once
        reader, self._spare = self._spare or self._fork(), None
        try:
            send(reader.jobs, job, descriptors)
        except OSError:
            reader = self._fork()
            send(reader.jobs, job, descriptors)
        reader.jobs.close()
        connection, *others = descriptors
        for descriptor in others:
            os.close(descriptor)
        reader.connection = socket.socket(fileno=connection)

    def _fork(self) -> _Reader:
        ours, theirs = connected_pair()
        template = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_reader(theirs, template, self._modules)
        theirs.close()
        reader = _Reader(pid, ours)
        ended = os.pidfd_open(pid)
        self._readers[ended] = reader
        self._poll.register(ended, select.POLLIN)
        return reader

    def _end_spare(self) -> None:
        if self._spare is not None:
            self._spare.jobs.close()
            self._spare = None

    def _report(self, descriptor: int) -> None:
        """Report the end of a reader to the server."""
        reader = self._readers.pop(descriptor)
        os.close(descriptor)
        _, status, usage = os.wait4(reader.pid, 0)
        if reader is self._spare:
            self._end_spare()
        if reader.connection is None:
            return
        end = {
            "exit": os.waitstatus_to_exitcode(status),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "memory_kib": usage.ru_maxrss,
        }
        with reader.connection, suppress(OSError):  # the server may no longer wait for it
            send(reader.connection, end)


def serve(control: socket.socket) -> None:
    """Start readers until the other side of `control` is closed."""
    _Template(control).serve()


def _preload(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    warm_up(modules)
    # The garbage collector of a reader would otherwise write to, and so copy, all pages of the template.
    gc.collect()
    gc.freeze()


def _become_reader(jobs: socket.socket, template: int, modules: list[str]) -> NoReturn:
    """Wait for a job, run it, and end."""
    try:
        end_with_parent(template)
        gc.disable()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        # The sockets of the template and of other readers must not stay open here.
        os.dup2(jobs.detach(), _JOBS)
        os.closerange(_JOBS + 1, os.sysconf("SC_OPEN_MAX"))
        jobs = socket.socket(fileno=_JOBS)
        confinement = Confinement()
        warm_up(modules)
        job, descriptors = receive(jobs)
        jobs.close()
        if job is not None:
            connection, signals = (socket.socket(fileno=d) for d in descriptors[:2])
            run_job(connection, signals, descriptors[2], job, confinement)
    finally:
        os._exit(1)


def main() -> None:
    """Serve the socket that is standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    serve(control)
    sys.stdout.flush()
    # The end of the template kills the readers that still run (`end_with_parent`).
    os._exit(0)


if __name__ == "__main__":
    main()
