"""A server in a process of its own, for programs that try it out."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from lib.config import APP_DIR
from lib.errors import OrganNetError

START_LIMIT_S = 180


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(studies: Path | str, conf: Mapping[str, str], *, log: Path) -> Iterator[str]:
    """Yield the url of a server over `studies`, a folder or the address of a PACS, and end it.

    Raises:
        OrganNetError: If it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP_DIR),
               "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    for key, value in conf.items():
        command += ["--conf", key, value]
    with log.open("ab") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env={**os.environ, "MONAI_LABEL_SESSIONS": "false"},
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(server, url, log)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)


def wait_until_up(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Return once the server answers.

    Raises:
        OrganNetError: If it ends, or takes longer than `START_LIMIT_S`.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            if requests.get(f"{url}/info/", timeout=10).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.3)
        if server.poll() is not None or time.monotonic() > deadline:
            raise OrganNetError(f"the server did not start; its log is {log}")
