"""Everything at once, without any data of yours: a cohort in a PACS, a model, a server, the three next clicks.

python -m apps.demo
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from apps.support.server_process import wait_until_up
from lib.config import APP_DIR, default_starter_dir
from lib.errors import OrganNetError, PacsError
from lib.models.registry import Registry
from lib.pacs.client import Pacs
from lib.pacs.orthanc import Orthanc, find_orthanc
from lib.recipes.schema import OPENKBP
from phantom.cohort import write_cohort, write_dicom_cohort

CASES, LABELLED = 12, 9
MODEL = "organnet25d"
LIST_LIMIT_S = 120.0


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
        with ExitStack() as stack:
            source = stack.enter_context(_source(options.folder, studies, options.port + 1))
            print(f"2/3 model: {_model(models)}")
            return _serve(source, options.folder, models, options.port)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where the patients are.

    Attributes:
        studies: What `--studies` takes.
        image: One that nobody contoured.
        study_uid: Of that one in the PACS; None without one.
    """

    studies: str
    image: str
    study_uid: str | None = None


@contextmanager
def _source(folder: Path, studies: Path, port: int) -> Iterator[_Source]:
    """Put the patients into a PACS of their own, where one is installed; else they stay in their folder."""
    name = f"demo_{LABELLED + 1:03d}"
    try:
        find_orthanc()
    except PacsError as error:
        print(f"    no PACS: {error}; OHIF needs one. The patients stay in their folder")
        yield _Source(studies=str(studies), image=name)
        return
    _require_free_port(port)
    with Orthanc(folder / "pacs", port) as pacs:
        patients = write_dicom_cohort(studies, folder / "dicom", recipe=OPENKBP)
        there = {str(one.SeriesInstanceUID) for one in Pacs(pacs.dicomweb_url).series()}
        for patient in patients:
            if patient.series_uid not in there:
                pacs.upload(patient.files)
        print(f"    PACS: Orthanc on {pacs.dicomweb_url}, its files in {folder / 'pacs'}")
        shown = next(patient for patient in patients if patient.name == name)
        yield _Source(studies=pacs.dicomweb_url, image=shown.series_uid, study_uid=shown.study_uid)


def _serve(source: _Source, folder: Path, models: Path, port: int) -> int:
    url = f"http://127.0.0.1:{port}"
    log_path = folder / "server.log"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP_DIR)]
    command += ["--studies", source.studies, "--host", "127.0.0.1", "--port", str(port)]
    # A model that learned from generated patients would contour real ones worse.
    command += ["--conf", "model_dir", str(models), "--conf", "auto_retrain", "off"]
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C reaches us alone, and we end the server and what it started.
        server = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        print(f"3/3 server: starting on {url} (log: {log_path})")
        seconds = _wait_and_warm_up(server, url, log_path, source.image)
        print(_next_clicks(url, source, folder, seconds), flush=True)
        return server.wait()
    finally:
        _end(server)


def _wait_and_warm_up(server: "subprocess.Popen[bytes]", url: str, log: Path, image: str) -> float:
    """Return how long the second infer took: after the first one everything is loaded."""
    wait_until_up(server, url, log)
    limit = time.monotonic() + LIST_LIMIT_S
    while not requests.head(f"{url}/datastore/image?image={image}", timeout=60).ok:
        if time.monotonic() > limit:
            raise OrganNetError(f"the server does not list the patients; see {log}")
        time.sleep(0.5)
    seconds = 0.0
    for _ in range(2):
        began = time.monotonic()
        answer = requests.post(f"{url}/infer/{MODEL}?image={image}&output=json", timeout=600)
        seconds = time.monotonic() - began
        if not answer.ok:
            raise OrganNetError(f"the server does not contour: {answer.text}")
    return seconds


def _next_clicks(url: str, source: _Source, folder: Path, seconds: float) -> str:
    python = os.path.relpath(sys.executable)
    models, studies, output = (
        os.path.relpath(folder / name) for name in ("models", "studies", "contours")
    )
    clicks = [
        f"""3D Slicer, module MONAI Label: enter {url} as the server, click Next Sample, then Run.""",
        f"""Contours over the CT as pictures, in another terminal:
       {python} -m apps.infer --model-dir {models} \\
         --input {studies} --output {output} --pictures""",
        f"Every route, to try in the browser: {url}/",
    ]
    if source.study_uid is not None:
        link = f"{url}/ohif/monai-label?StudyInstanceUIDs={source.study_uid}"
        clicks.insert(
            0, f"OHIF with a patient that nobody contoured, in the browser:\n       {link}"
        )
    listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(clicks, start=1))
    return f"""
The server is up: {url} (an infer takes {seconds:.1f} s). The next clicks:

{listed}

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
