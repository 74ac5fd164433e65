"""Run a demo on generated patients: a cohort in a PACS, a model, a server, and three things to try.

python -m apps.demo
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from typer import Option

from apps.support.console import program
from apps.support.options import STARTER_DIR
from lib.config import APP_DIR
from lib.errors import OrganNetError, PacsError

CASES, LABELLED = 12, 9
FIRST_UNLABELLED = f"demo_{LABELLED + 1:03d}"
LIST_TIMEOUT_S = 120.0


def demo(
    folder: Path = Option(
        APP_DIR / "demo", help="Folder for the cohort and the models.", show_default="demo"
    ),
    port: int = Option(8000, help="Port of the server; the PACS takes the next higher one."),
) -> int:
    """Run a demo on generated patients until Ctrl-C: a cohort in a PACS, a model and a server."""
    from apps.support.server_process import ended_like_ctrl_c
    from lib.recipes.schema import OPENKBP
    from phantom.cohort import write_cohort

    try:
        with ended_like_ctrl_c():
            _require_free_port(port)
            studies, models = folder / "studies", folder / "models"
            print(f"1/3 cohort: {CASES} generated head-and-neck CTs in {studies}")
            write_cohort(studies, recipe=OPENKBP, cases=CASES, labelled=LABELLED, seed=1)
            with _patients(folder, studies, port + 1) as patients:
                print(f"2/3 model: {_active_model(models)}")
                return _serve(patients, folder, models, port)
    except KeyboardInterrupt:
        print("\nstopped; the next `make demo` continues with these patients and models")
        return 0


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OrganNetError(
                f"port {port} is in use; stop the program that uses it, or: make demo PORT={port + 1}"
            ) from error


def _active_model(models: Path) -> str:
    """Return a description of the model that the server will use.

    Raises:
        OrganNetError: If the starter weights are missing.
    """
    from lib.models.registry import Registry

    registry = Registry(models, starter=STARTER_DIR)
    version = registry.published_version()
    if version is not None:
        return f"{version}, trained here"
    if registry.served_path() is None:
        raise OrganNetError(
            f"no weights in {STARTER_DIR}: this copy of the project is incomplete; clone it again, or train a "
            "model: python -m apps.train --help"
        )
    return "the starter model, trained on real patients (model/starter/README.md)"


class _Patients(NamedTuple):
    """The server's `--studies`, and image id and StudyInstanceUID (in a PACS) of a patient without contours."""

    studies: str
    image: str
    study_uid: str | None


@contextmanager
def _patients(folder: Path, studies: Path, port: int) -> Iterator[_Patients]:
    """Copy the patients into an Orthanc if it is installed; else use their folder."""
    from lib.pacs.client import Pacs
    from lib.pacs.orthanc import Orthanc, find_orthanc
    from lib.recipes.schema import OPENKBP
    from phantom.cohort import write_dicom_cohort

    try:
        find_orthanc()
    except PacsError as error:
        print(f"    no PACS: {error}; OHIF needs one. The patients are used from their folder")
        yield _Patients(str(studies), FIRST_UNLABELLED, None)
        return
    _require_free_port(port)
    with Orthanc(folder / "pacs", port) as pacs:
        patients = write_dicom_cohort(studies, folder / "dicom", recipe=OPENKBP)
        stored = {str(series.SeriesInstanceUID) for series in Pacs(pacs.dicomweb_url).series()}
        for patient in patients:
            if patient.series_uid not in stored:
                pacs.upload(patient.files)
        print(f"    PACS: Orthanc on {pacs.dicomweb_url}, its files in {folder / 'pacs'}")
        first = next(patient for patient in patients if patient.name == FIRST_UNLABELLED)
        yield _Patients(pacs.dicomweb_url, first.series_uid, first.study_uid)


def _serve(patients: _Patients, folder: Path, models: Path, port: int) -> int:
    from apps.support.server_process import serving, wait_until

    log = folder / "server.log"
    log.unlink(missing_ok=True)
    # No retraining: a model trained on generated patients would contour real ones worse.
    conf = {"model_dir": str(models), "auto_retrain": "off"}
    print(f"3/3 server: starting on http://127.0.0.1:{port} (log: {log})")
    with serving(patients.studies, conf, log=log, port=port) as server:
        wait_until(
            lambda: patients.image in server.request("GET", "/datastore/?output=all").text,
            LIST_TIMEOUT_S,
            f"the server does not list the patients; see {log}",
        )
        server.infer(patients.image)  # the first inference loads the model
        start = time.monotonic()
        server.infer(patients.image)
        seconds = time.monotonic() - start
        print(_next_steps(server.url, patients, folder, seconds), flush=True)
        return server.process.wait()


def _next_steps(url: str, patients: _Patients, folder: Path, seconds: float) -> str:
    python = os.path.relpath(sys.executable)
    models, studies, output = (
        os.path.relpath(folder / name) for name in ("models", "studies", "contours")
    )
    steps = [
        f"3D Slicer, module MONAI Label: enter {url} as the server, click Next Sample, then Run.",
        f"""Contours over the CT as pictures, in another terminal:
       {python} -m apps.infer --model-dir {models} \\
         --input {studies} --output {output} --pictures""",
        f"Every route, to try in the browser: {url}/",
    ]
    if patients.study_uid is not None:
        link = f"{url}/ohif/organnet?StudyInstanceUIDs={patients.study_uid}"
        steps.insert(0, f"OHIF with a patient without contours, in the browser:\n       {link}")
    listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(steps, start=1))
    return f"""
The server is up: {url} (one inference takes {seconds:.1f} s). Next steps:

{listed}

Ctrl-C stops everything."""


main = program(demo, "demo")

if __name__ == "__main__":
    sys.exit(main())
