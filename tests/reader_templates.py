"""Fast start of template processes of `lib.isolation`: forked from a process with only the readers' libraries.

`tests.forked_processes` forks programs from a process that has imported PyTorch and MONAI. A reader that is
forked from such a process takes 60 ms of processor time, nearly all of it for page tables. So each test process
has one process more, which imports what readers need and forks templates. All programs that the tests start
inherit the connection to it. A template is a child of that process, not of the program that uses it.

    python -m tests.reader_templates SOCKET
"""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]


def start_source(popen: "Callable[..., subprocess.Popen[bytes]]") -> socket.socket:
    """Return the connection to a new process that forks templates; it ends when no process holds it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command: list[Any] = [sys.executable, "-m", "tests.reader_templates", str(theirs.fileno())]
    process = popen(
        command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL
    )
    process.returncode = 0  # it may outlive this process, as programs hold the connection too
    theirs.close()
    return ours


def fork_template(source: socket.socket, control: int) -> int:
    """Return the id of a new template, whose standard input would be `control`."""
    answer, result = os.pipe()
    socket.send_fds(source, [b"x"], [control, result])
    os.close(result)
    pid = int(struct.unpack("!I", os.read(answer, 4))[0])
    os.close(answer)
    return pid


def main() -> NoReturn:
    """Fork a template for each message, until no process holds the connection."""
    import lib.imaging.reader_tasks  # noqa: F401 - imported before the forks
    from lib.isolation.template_process import serve

    source = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes templates that have ended
    while True:
        message, descriptors, _, _ = socket.recv_fds(source, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if not message:
            os._exit(0)
        control, result = descriptors
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            source.close()
            os.close(result)
            serve(socket.socket(fileno=control))
            os._exit(0)
        os.close(control)
        os.write(result, struct.pack("!I", pid))
        os.close(result)


if __name__ == "__main__":
    main()
