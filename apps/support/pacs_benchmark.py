"""How long lists and choices take over a PACS with many patients."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import requests

from apps.support.server_process import free_port, serving
from lib.activelearning.selection.catalogue import default_method
from lib.dicom.writer import write_ct_series
from lib.errors import OrganNetError
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.volumes import CtVolume
from lib.pacs.orthanc import Orthanc

SHAPE_VOX = (64, 64, 20)
LIST_LIMIT_S = 900.0
ASKS = 20


def seconds_with(studies: int, folder: Path) -> dict[str, list[float]]:
    """Return what is asked for -> seconds of each of `ASKS` answers, over an Orthanc with so many studies.

    Raises:
        PacsError: If no Orthanc is installed.
        OrganNetError: If an answer is none.
    """
    with Orthanc(folder / "pacs", free_port()) as pacs:
        for number in range(studies):
            files = folder / "series" / f"{number:04d}"
            write_ct_series(_noise(number), files, patient_id=f"patient {number}")
            pacs.upload(sorted(files.glob("*.dcm")))
        conf = {"model_dir": str(folder / "models"), "auto_retrain": "off", "scoring": "off"}
        with serving(pacs.dicomweb_url, conf, log=folder / "server.log") as url:
            _wait_for(url, studies)
            return _asked(url)


def _noise(seed: int) -> CtVolume:
    affine = np.diag([4.0, 4.0, 3.0, 1.0])
    rng = np.random.default_rng(seed)
    array = rng.integers(-1000, 400, SHAPE_VOX).astype(np.int16)
    return CtVolume(f"noise_{seed}", array, Grid.from_affine(SHAPE_VOX, ras_to_lps(affine)))


def _wait_for(url: str, studies: int) -> None:
    limit = time.monotonic() + LIST_LIMIT_S
    while _total(url) < studies:
        if time.monotonic() > limit:
            raise OrganNetError(
                f"{_total(url)} of {studies} studies are listed after {LIST_LIMIT_S:.0f} s"
            )
        time.sleep(1.0)


def _total(url: str) -> int:
    return int(requests.get(f"{url}/datastore/", timeout=60).json()["total"])


def _asked(url: str) -> dict[str, list[float]]:
    strategy = default_method(has_model=True)
    with requests.Session() as http:
        asked: dict[str, Callable[[int], requests.Response]] = {
            "the viewer's list of studies": lambda _: http.get(
                f"{url}/proxy/dicom/qido/studies?limit=101&offset=0&includefield=00081030,00080060",
                timeout=60,
            ),
            "the list of images": lambda _: http.get(f"{url}/datastore/?output=all", timeout=60),
            f"next sample ({strategy})": lambda n: http.post(
                f"{url}/activelearning/{strategy}", json={"client_id": f"bench-{n}"}, timeout=60
            ),
        }
        return {name: [_seconds(ask, n) for n in range(ASKS)] for name, ask in asked.items()}


def _seconds(ask: Callable[[int], requests.Response], number: int) -> float:
    began = time.perf_counter()
    answer = ask(number)
    took = time.perf_counter() - began
    if not answer.ok or not answer.content:
        raise OrganNetError(f"{answer.url}: HTTP {answer.status_code}: {answer.text[:200]}")
    return took
