"""Contours stored by a viewer become labels: stored once, counted, and not forwarded to the PACS unchanged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from pydicom.dataset import Dataset

from lib.dicom.ct_writer import write_ct_series
from lib.dicom.objects import Kind
from lib.imaging.scans import read_label
from tests.importers.sources import BRAINSTEM, PAROTID_R, put_rtstruct
from tests.pacs.orthancs import orthanc, put_ct
from tests.pacs_sync.test_inbox import draw
from tests.phantoms import make_ct
from tests.server.dicomweb.test_stow_routes import Installation, body, comments, sent, uid_of, uids
from tests.server.running import put_model, running
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server

PATIENTS = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("contours")
    for name in ("server", "server/models"):
        (folder / name).mkdir()
    put_model(folder / "server" / "models")
    with orthanc(folder / "orthanc") as pacs:
        series = [put_ct(pacs, make_ct(image_id=name), folder / name) for name in PATIENTS]
        with running(folder / "server", studies=pacs.dicomweb_url) as server:
            wait_until(lambda: set(server.images()) == set(series), "the patients are listed",
                       context=server.end_of_log)  # fmt: skip
            yield Installation(pacs, server, folder, series[0])


def series_of(installation: Installation, patient: str) -> str:
    first, *_ = sorted((installation.folder / patient).glob("*.dcm"))
    return str(pydicom.dcmread(first, stop_before_pixels=True).SeriesInstanceUID)


def history(installation: Installation, patient: str) -> list[dict[str, Any]]:
    answer = installation.server.ask(
        "GET", f"/organnet/labels/{series_of(installation, patient)}?tag=final"
    )
    payload: list[dict[str, Any]] = answer.json() if answer.ok else []
    return payload


@pytest.mark.parametrize(("kind", "patient"), [("seg", "one"), ("rtstruct", "two")])
def test_stored_contours_become_the_final_label_of_the_case(
    installation: Installation, tmp_path: Path, kind: Kind, patient: str
) -> None:
    file = tmp_path / "drawn.dcm"
    contours = draw(installation.folder / patient, file, kind=kind, values=(1, 4))
    before = installation.server.ask("GET", "/datastore/").json()["completed"]
    answer = sent(installation, body(file.read_bytes()))
    assert answer.status_code == 200, answer.text
    assert uids(answer.json(), "00081199") == {uid_of(file)}
    (comment,) = comments(answer.json(), "00081199")
    assert comment.startswith("kept as version 1, with Brainstem, Parotid_L; the case counts")
    assert installation.server.ask("GET", "/datastore/").json()["completed"] == before + 1
    (version,) = history(installation, patient)
    assert (version["client"], version["organs"]) == ("ohif", ["Brainstem", "Parotid_L"])
    query = f"/datastore/label?label={series_of(installation, patient)}&tag=final"
    accepted_file = tmp_path / "kept.nii.gz"
    accepted_file.write_bytes(installation.server.ask("GET", query).content)
    array, _ = read_label(accepted_file, image_id=patient, image_grid=contours.grid)
    assert (array == contours.array).mean() > (0.9999 if kind == "seg" else 0.99)
    assert uid_of(file) not in installation.instances(), "the PACS gets this server's own SEG of it"
    # A repeated request, as after a lost answer, stores the same label.
    again = sent(installation, body(file.read_bytes()))
    assert again.status_code == 200
    assert len(history(installation, patient)) == 1


def test_organs_missing_since_the_previous_version_are_named(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "less.dcm"
    draw(installation.folder / "one", file, values=(1,))
    (comment,) = comments(sent(installation, body(file.read_bytes())).json(), "00081199")
    assert "with Brainstem; the case counts" in comment
    assert "Missing, but present in the previous version: Parotid_L" in comment


def test_a_structure_that_is_stored_under_another_name_is_named(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "renamed.dcm"
    put_rtstruct(file, installation.folder / "two", {"Brain Stem": [BRAINSTEM]})
    (comment,) = comments(sent(installation, body(file.read_bytes())).json(), "00081199")
    assert "Changed: 'Brain Stem' was stored as Brainstem" in comment
    assert history(installation, "two")[-1]["changes"] == ["'Brain Stem' was stored as Brainstem"]


def test_a_structure_whose_side_is_in_its_code_is_stored_at_once(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "side_in_code.dcm"
    put_rtstruct(file, installation.folder / "two", {"Parotid": [PAROTID_R]})
    dataset = pydicom.dcmread(file)
    code, side, observation = Dataset(), Dataset(), Dataset()
    side.CodeValue, side.CodingSchemeDesignator, side.CodeMeaning = "24028007", "SCT", "Right"
    code.CodeValue, code.CodingSchemeDesignator = "45289007", "SCT"
    code.CodeMeaning, code.SegmentedPropertyTypeModifierCodeSequence = "Parotid gland", [side]
    observation.ReferencedROINumber, observation.RTROIIdentificationCodeSequence = 1, [code]
    dataset.RTROIObservationsSequence = [observation]
    dataset.save_as(file)
    (comment,) = comments(sent(installation, body(file.read_bytes())).json(), "00081199")
    assert "with Parotid_R; the case counts" in comment
    assert "Changed: ROI 1, 'Parotid', read as 'Parotid Right': its code has the side" in comment
    assert history(installation, "two")[-1]["organs"] == ["Parotid_R"]


def test_each_part_is_stored_or_refused_on_its_own(
    installation: Installation, tmp_path: Path
) -> None:
    accepted_file, refused, foreign = (
        tmp_path / f"{name}.dcm" for name in ("kept", "refused", "foreign")
    )
    draw(installation.folder / "three", accepted_file, values=(2,))
    draw(installation.folder / "three", refused, values=(8,), labels={"Cochlea_L": 8})
    write_ct_series(make_ct(image_id="new"), tmp_path / "new", patient_id="new")
    draw(tmp_path / "new", foreign)
    slices = sorted((tmp_path / "new").glob("*.dcm"))[:2]
    parts = [accepted_file.read_bytes(), b"garbage", refused.read_bytes(), foreign.read_bytes()]
    answer = sent(installation, body(*parts, *(file.read_bytes() for file in slices)))
    assert answer.status_code == 202
    outcome = answer.json()
    assert uids(outcome, "00081199") == {
        uid_of(accepted_file),
        uid_of(foreign),
        *map(uid_of, slices),
    }
    assert uids(outcome, "00081198") == {uid_of(refused)}
    assert len(outcome["0008119A"]["Value"]) == 1
    (why,) = comments(outcome, "00081198")
    assert "Cochlea_L" in why
    assert "quarantine/" in why
    (version,) = history(installation, "three")
    assert version["organs"] == ["SpinalCord"]
    there = installation.instances()
    assert {uid_of(foreign), *map(uid_of, slices)} <= there
    assert not {uid_of(accepted_file), uid_of(refused)} & there


def test_contours_are_stored_while_the_pacs_is_down_and_sent_afterwards(
    installation: Installation, tmp_path: Path
) -> None:
    series = series_of(installation, "four")
    # The scan is in the cache, because the user has opened it to contour it.
    assert installation.server.ask("GET", f"/datastore/image?image={series}").status_code == 200
    file = tmp_path / "drawn.dcm"
    draw(installation.folder / "four", file, values=(1, 3))
    installation.pacs.kill()
    try:
        answer = sent(installation, body(file.read_bytes()))
    finally:
        installation.pacs.start()
    assert answer.status_code == 200, answer.text
    assert len(history(installation, "four")) == 1
    study = str(pydicom.dcmread(file, stop_before_pixels=True).StudyInstanceUID)
    url = f"{installation.pacs.dicomweb_url}/studies/{study}/instances"
    stored = wait_until(
        lambda: requests.get(url, params={"Modality": "SEG"}, timeout=LIMIT_S).json(),
        "the contours arrive",
        context=installation.server.end_of_log,
    )
    assert len(stored) == 1
    assert stored[0]["00080018"]["Value"] != [uid_of(file)]


def test_an_object_with_an_unknown_value_representation_is_refused(
    installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "damaged.dcm"
    draw(installation.folder / "one", file, kind="rtstruct")
    tag = b"\x06\x30\x12\x00"  # RT Referenced Study Sequence (3006,0012)
    content = file.read_bytes().replace(tag + b"SQ", tag + b"S\xff")
    assert content != file.read_bytes()
    answer = sent(installation, body(content))
    assert answer.status_code == 409
    (comment,) = comments(answer.json(), "00081198")
    assert "the object is damaged" in comment
