"""A real PACS for tests, and series to put into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apps.support.server_process import free_port as free_port
from lib.dicom.ct_writer import write_ct_series
from lib.errors import PacsError
from lib.imaging.volumes import CtVolume
from lib.pacs.orthanc import Orthanc, find_orthanc


def require_program(name: str, package: str) -> str:
    """Return the path of a program; if it is missing, skip the test, or fail it in CI."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/bin")
    if path is None:
        missing(f"{name} is not installed: apt-get install {package}")
    return str(path)


@contextmanager
def orthanc(folder: Path, **options: Any) -> Iterator[Orthanc]:
    """Yield a running Orthanc over `folder`; skip the test if Orthanc is not installed."""
    try:
        find_orthanc()
    except PacsError as error:
        missing(str(error))
    pacs = Orthanc(folder, free_port(), **options)
    pacs.start()
    try:
        yield pacs
    finally:
        pacs.kill()  # its folder is thrown away, and an orderly end takes more than two seconds


def put_ct(pacs: Orthanc, ct: CtVolume, folder: Path, *, patient_id: str | None = None) -> str:
    """Store a CT as a series of its own study, and return its SeriesInstanceUID."""
    uid = write_ct_series(ct, folder, patient_id=patient_id or ct.image_id)
    pacs.upload(sorted(folder.glob("*.dcm")))
    return uid


def missing(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
