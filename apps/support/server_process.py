"""A server in a separate process, and a client for it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests

from lib.config import APP_DIR
from lib.errors import OrganNetError

START_TIMEOUT_S = 600.0
REQUEST_TIMEOUT_S = 600.0


class Server(NamedTuple):
    """A running server, and a client for it."""

    url: str
    process: "subprocess.Popen[bytes]"

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Return the server's response; `options` are arguments of `requests.request`.

        Raises:
            OrganNetError: If the server refuses the request.
        """
        url = f"{self.url}{path}"
        answer = requests.request(method, url, timeout=REQUEST_TIMEOUT_S, **options)
        if not answer.ok:
            raise OrganNetError(f"{answer.url}: HTTP {answer.status_code}: {answer.text[:200]}")
        return answer

    def infer(self, image_id: str) -> dict[str, Any]:
        """Return the organs of an image and the version of the model that contoured them, without the masks."""
        path = f"/infer/organnet25d?image={image_id}&output=json"
        answer: dict[str, Any] = self.request("POST", path).json()
        return answer

    def status(self) -> dict[str, Any]:
        """Return the status that the server reports."""
        status: dict[str, Any] = self.request("GET", "/organnet/status").json()
        return status


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
    """Wait until the condition holds.

    Raises:
        OrganNetError: With the text `problem`, if it does not hold within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise OrganNetError(problem)
        time.sleep(0.5)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does, so that the program ends its servers.

    SIGINT does so even if a shell that started the program in the background makes it ignore SIGINT.
    """
    endings = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(ending, signal.default_int_handler) for ending in endings]
    try:
        yield
    finally:
        for ending, handler in zip(endings, previous, strict=True):
            signal.signal(ending, handler)


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
        # A separate session: Ctrl-C reaches only this program, which then stops the server and its workers.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "MONAI_LABEL_SESSIONS": "false"},
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", process)
    problem = f"the server did not start; its log is {log}"
    try:
        wait_until(lambda: _is_up(server, problem), START_TIMEOUT_S, problem)
        yield server
    finally:
        _stop(process)


def _is_up(server: Server, problem: str) -> bool:
    if server.process.poll() is not None:
        raise OrganNetError(problem)
    try:
        return bool(requests.get(f"{server.url}/info/", timeout=10).ok)
    except requests.RequestException:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the server and every process of its session; kill those that do not end within a minute."""
    for stop_signal in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop_signal)
        except ProcessLookupError:
            return
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            continue
