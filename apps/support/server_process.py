"""A server in a process of its own, for programs that send requests to it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests

from lib.config import APP_DIR
from lib.errors import OrganNetError

START_TIMEOUT_S = 180


class Server(NamedTuple):
    """A running server."""

    url: str
    process: "subprocess.Popen[bytes]"


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    studies: Path | str, conf: Mapping[str, str], *, log: Path, port: int | None = None
) -> Iterator[Server]:
    """Start a server and stop it at the end.

    Args:
        studies: Studies folder or DICOMweb URL.
        conf: Settings, as for `--conf`.
        log: File that the output of the server is appended to.
        port: Port of 127.0.0.1; None for a free one.

    Raises:
        OrganNetError: If the server does not start.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP_DIR),
               "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    for key, value in conf.items():
        command += ["--conf", key, value]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches this program alone, which then stops the server and its workers.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "MONAI_LABEL_SESSIONS": "false"},
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_up(process, url, log)
        yield Server(url, process)
    finally:
        _stop(process)


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if requests.get(f"{url}/info/", timeout=10).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
        if process.poll() is not None or time.monotonic() > deadline:
            raise OrganNetError(f"the server did not start; its log is {log}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the server and every process of its session; kill those that do not end within 10 s."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            return
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
