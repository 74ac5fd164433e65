"""A server over a studies folder with unreadable entries, names of all kinds, and read-only folders."""

import gzip
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.dicom.ct_writer import write_ct_series
from lib.imaging.scans import write_ct, write_label
from tests.permissions import AS_ORDINARY_USER, forbidden
from tests.server.running import Server, put_case, put_model, running, small_ct, two_organs
from tests.waiting import wait_until

pytestmark = pytest.mark.server

MAPPED = "Muller-a7842989"
"""Id of "Müller": its SHA-256 begins with a7842989."""
COMMAND = (sys.executable, "-c", AS_ORDINARY_USER)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose user is not root, and whose studies folder had unreadable entries at the start."""
    folder = tmp_path_factory.mktemp("server")
    studies = folder / "studies"
    (studies / "lost+found").mkdir(parents=True)
    (folder / "models").mkdir()
    put_model(folder / "models")
    write_ct(studies / "good.nii.gz", small_ct())
    write_ct_series(small_ct(), studies / "M\u00fcller", patient_id="x")
    write_ct_series(small_ct(), studies / "CD" / "DICOM" / "PA1" / "SE1", patient_id="x")
    write_ct_series(small_ct(), studies / "series", patient_id="x")
    os.mkfifo(studies / "fifo.nii.gz")
    one_slice = min((studies / "series").iterdir())
    unreadable = (studies / "lost+found", one_slice)
    with forbidden(*unreadable), running(folder, command=COMMAND) as started:
        yield started


@pytest.fixture
def label(tmp_path: Path) -> bytes:
    path = tmp_path / "label.nii.gz"
    write_label(path, two_organs(small_ct().grid))
    return path.read_bytes()


def listing(server: Server) -> dict[str, Any]:
    answer = server.ask("GET", "/datastore/?output=all")
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def submit(server: Server, image_id: str, label: bytes) -> Any:
    files = {"label": ("label.nii.gz", label)}
    return server.ask("PUT", "/datastore/label", params={"image": image_id}, files=files)


def test_unreadable_entries_are_named_and_the_rest_is_served(server: Server) -> None:
    content = listing(server)
    assert {"good", MAPPED} < content["objects"].keys()
    refused = content["refused"]
    assert refused["lost+found"] == "lost+found cannot be read (Permission denied)"
    assert refused["series"].startswith("series holds ")
    assert refused["fifo"] == "fifo.nii.gz is not a regular file"
    for path in ("/info/", "/organnet/status", "/datastore/"):
        assert server.ask("GET", path).status_code == 200
    assert server.ask("POST", "/infer/organnet25d?image=good&output=json").status_code == 200
    answer = server.ask("POST", "/infer/organnet25d?image=series&output=json")
    assert answer.status_code == 422
    assert "which cannot be read (Permission denied)" in answer.json()["detail"]


def test_an_entry_returns_when_it_can_be_read(server: Server) -> None:
    put_case(server, "closed")
    with forbidden(server.studies / "closed.nii.gz"):
        answer = server.ask("POST", "/infer/organnet25d?image=closed&output=json")
        assert answer.status_code == 422
        assert answer.json()["detail"] == "closed: closed.nii.gz cannot be read (Permission denied)"
        assert "closed" in listing(server)["refused"]
    wait_until(lambda: "closed" in listing(server)["objects"], "the scan is listed again")
    with forbidden(server.studies):
        assert list(listing(server)["refused"]) == ["."]
        assert server.ask("GET", "/info/").status_code == 200
        assert "id" not in server.ask("POST", "/activelearning/first", json={}).json()
    assert "closed" in listing(server)["objects"]


def test_a_mapped_id_works_on_every_route(server: Server, label: bytes) -> None:
    (deep,) = (i for i in listing(server)["objects"] if i.startswith("CD_DICOM_PA1_SE1-"))
    for image_id, path in ((MAPPED, "M\u00fcller"), (deep, "CD/DICOM/PA1/SE1")):
        info = server.ask("GET", "/datastore/image/info", params={"image": image_id}).json()
        assert info["stored_as"] == path
        query = {"image": image_id, "output": "json"}
        assert server.ask("POST", "/infer/organnet25d", params=query).status_code == 200
        assert submit(server, image_id, label).json()["image"] == image_id
        query = {"label": image_id, "tag": "final"}
        stored = server.ask("GET", "/datastore/label", params=query)
        assert f"{image_id}.nii.gz" in stored.headers["content-disposition"]
        (version,) = server.ask("GET", f"/organnet/labels/{image_id}").json()
        assert version["image"] == image_id
    cases = server.ask("GET", "/datastore/?output=train").json()
    assert {"M\u00fcller", "CD/DICOM/PA1/SE1"} <= {case["image"] for case in cases}


def test_a_folder_that_becomes_read_only_refuses_a_label_with_the_reason(
    server: Server, label: bytes
) -> None:
    put_case(server, "later")
    with forbidden(server.studies / "labels" / "final", mode=0o555):
        answer = submit(server, "later", label)
        assert answer.status_code == 507
        assert (
            "no permission to write there (Permission denied), so the label was not kept"
            in answer.text
        )
        assert server.ask("POST", "/infer/organnet25d?image=later&output=json").status_code == 200
    with forbidden(*server.studies.glob(".organnet/*.sqlite*"), mode=0o444):
        answer = submit(server, "later", label)
        assert answer.status_code in (200, 507), answer.text
    assert submit(server, "later", label).status_code == 200


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_link_to_another_file_of_the_machine_is_not_sent(
    server: Server, tmp_path: Path, suffix: str, *, is_packed: bool
) -> None:
    content = b"name:secret\n" * 40
    content = gzip.compress(content) if is_packed else content
    (tmp_path / "private").write_bytes(content)
    link = server.studies / f"link{suffix}"
    link.symlink_to(tmp_path / "private")
    digest = hashlib.sha256(content).hexdigest()
    try:
        answer = server.ask("GET", "/datastore/image?image=link")
        checked = server.ask("HEAD", f"/datastore/image?image=link&check_sum=SHA256:{digest}")
    finally:
        link.unlink()
    assert (answer.status_code, checked.status_code) == (422, 422)
    assert f"link{suffix} does not begin as a {suffix} file" in answer.text


def test_a_link_in_place_of_a_label_is_not_sent(server: Server, tmp_path: Path) -> None:
    put_case(server, "linked")
    (tmp_path / "private").write_bytes(b"name:secret\n")
    link = server.studies / "labels" / "final" / "linked.nii.gz"
    link.symlink_to(tmp_path / "private")
    try:
        answer = server.ask("GET", "/datastore/label?label=linked&tag=final")
    finally:
        link.unlink()
    assert answer.status_code in {404, 422}
    assert "secret" not in answer.text


def test_only_a_client_on_the_servers_machine_gets_paths(server: Server) -> None:
    put_case(server, "0_first")
    for headers, is_local in (({}, True), ({"Via": "1.1 proxy"}, False)):
        sample = server.ask("POST", "/activelearning/first", json={}, headers=headers).json()
        about = server.ask("GET", "/datastore/image/info?image=0_first", headers=headers).json()
        assert sample["id"] == "0_first"
        assert [("path" in one) for one in (sample, about)] == [is_local, is_local]
        assert server.ask("DELETE", "/organnet/leases/0_first").status_code == 200
        if not is_local:
            assert str(server.studies) not in str(sample) + str(about)


def test_read_only_studies_need_a_place_for_labels(tmp_path: Path, label: bytes) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    write_ct(studies / "a.nii.gz", small_ct())
    with forbidden(studies, mode=0o555):
        with (
            pytest.raises(
                AssertionError, match=r"cannot start: --studies: .*--conf state_dir"
            ) as error,
            running(tmp_path, command=COMMAND),
        ):
            pass
        assert "Traceback" not in str(error.value)
        conf = {"state_dir": str(tmp_path / "state")}
        with running(tmp_path, command=COMMAND, conf=conf) as server:
            assert submit(server, "a", label).status_code == 200
            assert server.ask("GET", "/datastore/label?label=a&tag=final").status_code == 200
    assert [path.name for path in studies.iterdir()] == ["a.nii.gz"]
    assert (tmp_path / "state" / "labels" / "final" / "a.nii.gz").is_file()
