"""A test clinic: a PACS with generated patients, and a server in front of it with the starter model."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import requests
import SimpleITK as sitk
import yaml

from lib.config import default_starter_dir
from lib.dicom.ct_writer import write_ct_series
from lib.imaging.geometry import Grid
from lib.imaging.scans import write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.pacs.orthanc import Orthanc
from lib.recipes.schema import OPENKBP
from lib.training.cases import is_held_out
from phantom import head_and_neck_phantom
from phantom.cohort import voxel_grid
from tests.pacs.orthancs import orthanc
from tests.phantoms import rotation, stored_as
from tests.server.running import ANYTHING_GOES, Server, running
from tests.waiting import LIMIT_S

MODEL = "organnet25d"
ALREADY_LABELLED = ("earlier_1", "earlier_2", "earlier_3")
"""Two of these become evaluation cases, which are never trained on."""
TODAY, LATER, OBLIQUE = "today", "later", "oblique"
WAIT_S = 600

RECIPE = replace(
    OPENKBP,
    name="e2e",
    schedule=replace(OPENKBP.schedule, epochs=1, steps_per_epoch=2, batch_size=1, validate_every=1),
)
"""The network of the starter, trained for a moment only."""


@dataclass(frozen=True, slots=True)
class Clinic:
    """The parts of a clinic.

    Attributes:
        pacs: The PACS with the patients.
        server: The server that the viewer connects to.
        series: SeriesInstanceUID of each patient.
        folder: The folder for files.
        pictures: The folder for screenshots.
    """

    pacs: Orthanc
    server: Server
    series: dict[str, str]
    folder: Path
    pictures: Path

    def admit(self, patient: str, files: Sequence[Path]) -> None:
        """Put the slices of a CT into the PACS, and wait until the server lists it."""
        self.pacs.upload(files)
        header = pydicom.dcmread(files[0], stop_before_pixels=True)
        self.series[patient] = str(header.SeriesInstanceUID)
        self.wait_for_patients()

    def wait_for_patients(self) -> None:
        """Wait until the server lists all patients."""
        all_series = set(self.series.values())
        assert becomes_true(lambda: set(self.server.images()) == all_series), self.status()

    def study(self, patient: str) -> str:
        """Return the StudyInstanceUID of a patient."""
        (is_true,) = self._search("series", SeriesInstanceUID=self.series[patient])
        return str(is_true["0020000D"]["Value"][0])

    def segmentations(self, patient: str) -> list[str]:
        """Return the SOPInstanceUIDs of the SEGs that the PACS has of a patient."""
        is_true = self._search("instances", StudyInstanceUID=self.study(patient), Modality="SEG")
        return [one["00080018"]["Value"][0] for one in is_true]

    def _search(self, resource: str, **query: str) -> Any:
        url = f"{self.pacs.dicomweb_url}/{resource}"
        return requests.get(url, params=query, timeout=LIMIT_S).json()

    def contoured(self, patient: str) -> sitk.Image:
        """Return the model's contours of a patient, requested as OHIF does."""
        form = {"params": json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})}
        address = f"/infer/{MODEL}?image={self.series[patient]}&output=image"
        # A shared machine that also runs a browser may be slow.
        answer = requests.post(self.server.url + address, data=form, timeout=WAIT_S)
        return self._image(answer, "contoured.nrrd")

    def submitted(self, patient: str) -> sitk.Image:
        """Return the final label of a patient."""
        address = f"/datastore/label?label={self.series[patient]}&tag=final"
        return self._image(self.server.ask("GET", address), "submitted.nii.gz")

    def _image(self, answer: requests.Response, name: str) -> sitk.Image:
        assert answer.status_code == 200, answer.text
        path = self.folder / name
        path.write_bytes(answer.content)
        return sitk.ReadImage(str(path))

    def history(self, patient: str) -> list[dict[str, Any]]:
        """Return the versions of a patient's final label, oldest first."""
        answer = self.server.ask("GET", f"/organnet/labels/{self.series[patient]}?tag=final")
        payload: list[dict[str, Any]] = answer.json() if answer.ok else []
        return payload

    def status(self) -> str:
        """Return the server's status as text."""
        return self.server.ask("GET", "/organnet/status").text

    def training_states(self) -> list[str]:
        """Return the states of the trainings, oldest first."""
        history = self.server.ask("GET", "/organnet/status").json()["history"]
        return [str(run["state"]) for run in history["trainings"]]

    def counted(self) -> int:
        """Return the number of cases that count as labelled."""
        return int(self.server.ask("GET", "/datastore/").json()["completed"])


def becomes_true(condition: Callable[[], bool], *, within_s: float = WAIT_S) -> bool:
    """Return whether a condition becomes true in time, on a machine that may be busy."""
    limit = time.monotonic() + within_s
    while not (is_true := condition()) and time.monotonic() < limit:
        time.sleep(0.5)
    return is_true


@contextmanager
def opened(folder: Path) -> Iterator[Clinic]:
    """Yield a clinic with three patients that were labelled on earlier days."""
    pictures = Path(os.environ.get("ORGANNET_PICTURES") or folder / "pictures")
    for target in (folder / "server", pictures):
        target.mkdir(parents=True, exist_ok=True)
    recipe = folder / "e2e.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE.as_dict()))
    conf = {"recipe": str(recipe), "starter_dir": str(default_starter_dir()), "retrain_epochs": "1"}
    with orthanc(folder / "orthanc") as pacs:
        series: dict[str, str] = {}
        labels: dict[str, LabelVolume] = {}
        patients = (*ALREADY_LABELLED, TODAY, LATER, OBLIQUE)
        for seed, name in enumerate(patients):
            ct, labels[name] = _patient(seed, name)
            series[name] = _admitted(pacs, ct, folder)
        with running(
            folder / "server",
            studies=pacs.dicomweb_url,
            conf={**ANYTHING_GOES, **conf},
            environment={"OMP_NUM_THREADS": "2"},
        ) as server:
            clinic = Clinic(pacs, server, series, folder, pictures)
            clinic.wait_for_patients()
            for name in ALREADY_LABELLED:
                _label(clinic, name, labels[name], folder)
            yield clinic


def _patient(seed: int, name: str) -> tuple[CtVolume, LabelVolume]:
    shape_vox, spacing_mm = voxel_grid(OPENKBP)
    generated, label = head_and_neck_phantom(
        seed, grid_shape=shape_vox, spacing_mm=spacing_mm, labels=OPENKBP.labels
    )
    ct = CtVolume(name, generated.array_hu, generated.grid)
    if name != OBLIQUE:
        return ct, label
    affine = ct.grid.affine_ras.copy()
    affine[:3, :3] = rotation(about_x_deg=12, about_z_deg=7) @ affine[:3, :3]
    turned = CtVolume(name, ct.array_hu, Grid.from_affine(ct.grid.shape_vox, affine))
    return stored_as(turned, (0, 1, 2), (False, True, True)), label


def _admitted(pacs: Orthanc, ct: CtVolume, folder: Path) -> str:
    """Store a CT as a series that may be trained on, and return its SeriesInstanceUID.

    After the first two, the hash of the UID decides whether a case becomes an evaluation case: by chance, too
    few training cases might remain.
    """
    folders = (folder / f"{ct.image_id}_{number}" for number in count())
    written = ((write_ct_series(ct, target, patient_id=ct.image_id), target) for target in folders)
    uid, target = next((uid, target) for uid, target in written if not is_held_out(uid))
    pacs.upload(sorted(target.glob("*.dcm")))
    return uid


def _label(clinic: Clinic, name: str, label: LabelVolume, folder: Path) -> None:
    path = folder / f"{name}.nii.gz"
    write_label(path, label)
    with path.open("rb") as file:
        answer = clinic.server.ask(
            "PUT", f"/datastore/label?image={clinic.series[name]}", files={"label": file}
        )
    assert answer.status_code == 200, answer.text


def values(image: sitk.Image) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return the voxels of a label, `(Z, Y, X)`."""
    return np.asarray(sitk.GetArrayFromImage(image), np.uint8)
