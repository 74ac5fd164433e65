"""Everything at once, without any data of yours: a cohort, a model, a server, the three next clicks.

python -m apps.demo
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from lib.config import APP_DIR, default_starter_dir
from lib.errors import OrganNetError
from lib.phantom.cohort import write_cohort
from lib.recipes import OPENKBP
from lib.registry import Registry
from lib.rehearsal.server import wait_until_up

CASES, LABELLED = 12, 9
MODEL = "organnet25d"


def parser() -> argparse.ArgumentParser:
    """Return the flags."""
    flags = argparse.ArgumentParser(prog="python -m apps.demo", description=__doc__.splitlines()[0])
    flags.add_argument(
        "--folder", type=Path, default=APP_DIR / "demo", help="cohort and model go here"
    )
    flags.add_argument("--port", type=int, default=8000)
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo until Ctrl-C; return its exit code."""
    options = parser().parse_args(argv)
    # Also where a shell started us in the background, and so with Ctrl-C's signal ignored.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        _require_free_port(options.port)
        studies, models = options.folder / "studies", options.folder / "models"
        print(f"1/3 cohort: {CASES} generated head-and-neck CTs in {studies}")
        write_cohort(studies, recipe=OPENKBP, cases=CASES, labelled=LABELLED, seed=1)
        print(f"2/3 model: {_model(models)}")
        return _serve(studies, models, options.port)
    except OrganNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the next `make demo` goes on from here")
        return 0


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OrganNetError(
                f"port {port} is taken; stop what uses it, or: make demo PORT={port + 1}"
            ) from error


def _model(models: Path) -> str:
    """Return which model will serve.

    Raises:
        OrganNetError: If the weights that come with the project are missing.
    """
    registry = Registry(models, starter=default_starter_dir())
    version = registry.published_version()
    if version is not None:
        return f"{version}, trained here"
    if registry.served_path() is None:
        raise OrganNetError(
            f"no weights in {default_starter_dir()}: they come with the project, so this copy is not whole; "
            "clone it again, or train one: python -m apps.train --help"
        )
    return "the starter, trained on real patients (model/starter/README.md)"


def _serve(studies: Path, models: Path, port: int) -> int:
    url = f"http://127.0.0.1:{port}"
    log_path = studies.parent / "server.log"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP_DIR)]
    command += ["--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    # A model that learned from generated patients would contour real ones worse.
    command += ["--conf", "model_dir", str(models), "--conf", "auto_retrain", "off"]
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C reaches us alone, and we end the server and what it started.
        server = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        print(f"3/3 server: starting on {url} (log: {log_path})")
        seconds = _wait_and_warm_up(server, url, log_path)
        print(_next_clicks(url, studies, models, seconds), flush=True)
        return server.wait()
    finally:
        _end(server)


def _wait_and_warm_up(server: "subprocess.Popen[bytes]", url: str, log: Path) -> float:
    """Return how long the second infer took: after the first one everything is loaded."""
    wait_until_up(server, url, log)
    seconds = 0.0
    for _ in range(2):
        began = time.monotonic()
        answer = requests.post(f"{url}/infer/{MODEL}?image=demo_001&output=json", timeout=600)
        seconds = time.monotonic() - began
        if not answer.ok:
            raise OrganNetError(f"the server does not contour: {answer.text}")
    return seconds


def _next_clicks(url: str, studies: Path, models: Path, seconds: float) -> str:
    python = os.path.relpath(sys.executable)
    return f"""
The server is up: {url} (an infer takes {seconds:.1f} s). Three next clicks:

  1. 3D Slicer, module MONAI Label: enter {url} as the server, click Next Sample, then Run.
  2. Without Slicer: contours over the CT as pictures, in another terminal:
       {python} -m apps.infer --model-dir {os.path.relpath(models)} --input {os.path.relpath(studies)} \\
         --output {os.path.relpath(studies.parent / "contours")} --pictures
  3. Every route, to try in the browser: {url}/

Ctrl-C stops everything."""


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and every process of its session, politely first."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
        except ProcessLookupError:
            return
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(main())
