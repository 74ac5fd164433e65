"""The template process: imports the readers, forks one reader for each file, and reports how each ended.

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

from lib.isolation.confinement import end_with_parent
from lib.isolation.messages import receive, send
from lib.isolation.reader import find_task, run_job


@dataclass(slots=True)
class _Running:
    """A reader, and the connection over which its end is reported."""

    pid: int
    connection: socket.socket


def serve(control: socket.socket) -> None:
    """Fork readers until the other side of `control` is closed."""
    running: dict[int, _Running] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                _report(running.pop(descriptor), descriptor)
                continue
            message, descriptors = receive(control)
            if message is None:
                return
            if "modules" in message:
                _preload(message["modules"])
                continue
            started = _start(message, descriptors, control)
            ended = os.pidfd_open(started.pid)
            running[ended] = started
            poll.register(ended, select.POLLIN)


def _preload(modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    # The garbage collector of a reader would otherwise write to, and so copy, all pages of the template.
    gc.collect()
    gc.freeze()


def _start(job: dict[str, Any], descriptors: list[int], control: socket.socket) -> _Running:
    connection, voxels = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    find_task(job["task"])  # imported before the fork, once
    template = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_reader(connection, voxels, job, template, control)
    voxels.close()
    return _Running(pid, connection)


def _become_reader(
    connection: socket.socket,
    voxels: socket.socket,
    job: dict[str, Any],
    template: int,
    control: socket.socket,
) -> NoReturn:
    try:
        end_with_parent(template)
        gc.disable()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        # The sockets of the template and of other readers must not stay open here.
        control.detach()
        kept = (connection.detach(), voxels.detach())
        first = max(kept) + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        for descriptor in set(range(3, first)) - set(kept):
            with suppress(OSError):
                os.close(descriptor)
        run_job(socket.socket(fileno=kept[0]), socket.socket(fileno=kept[1]), job)
    finally:
        os._exit(1)


def _report(reader: _Running, descriptor: int) -> None:
    os.close(descriptor)
    _, status, usage = os.wait4(reader.pid, 0)
    try:
        send(
            reader.connection,
            {
                "exit": os.waitstatus_to_exitcode(status),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "memory_kib": usage.ru_maxrss,
            },
        )
    except OSError:
        pass  # The server no longer waits for it.
    finally:
        reader.connection.close()


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
