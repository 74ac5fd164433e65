"""Information on images and labels, as Slicer's reviewer module reads and writes it."""

import hashlib
import json

import pytest

from tests.server.running import Server, put_case

pytestmark = pytest.mark.server


@pytest.fixture
def case(server: Server) -> str:
    put_case(server, "reviewed", is_labelled=True)
    return "reviewed"


def test_an_image_exists_if_its_checksum_matches(server: Server, case: str) -> None:
    digest = hashlib.sha256((server.studies / f"{case}.nii.gz").read_bytes()).hexdigest()
    for check_sum, status in (
        ("", 200),
        (digest, 200),
        (f"SHA256:{digest}", 200),
        (f"SHA512:{digest}", 404),
        ("0" * 64, 404),
        (f"CRC:{digest}", 400),
    ):
        params = {"image": case, "check_sum": check_sum}
        assert server.ask("HEAD", "/datastore/image", params=params).status_code == status


def test_whether_a_label_exists_is_answered(server: Server, case: str) -> None:
    for tag, status in (("final", 200), ("original", 404), ("../final", 404)):
        params = {"image": case, "tag": tag}
        assert server.ask("HEAD", "/datastore/label", params=params).status_code == status


def test_notes_on_an_image_and_its_label_are_stored(server: Server, case: str) -> None:
    notes = {"info": json.dumps({"level": "difficult"})}
    assert server.ask("PUT", f"/datastore/image/info?image={case}", data=notes).status_code == 200
    assert server.ask("GET", f"/datastore/image/info?image={case}").json()["level"] == "difficult"
    label = f"label={case}&tag=final"
    assert server.ask("PUT", f"/datastore/label/info?{label}", data=notes).status_code == 200
    meta = {"params": json.dumps({"segmentationMeta": {"status": "approved"}})}
    assert server.ask("PUT", f"/datastore/updatelabelinfo?{label}", data=meta).status_code == 200
    info = server.ask("GET", f"/datastore/label/info?{label}").json()
    assert (info["level"], info["segmentationMeta"]) == ("difficult", {"status": "approved"})


def test_the_datastore_lists_its_content(server: Server, case: str) -> None:
    assert server.ask("GET", "/datastore/").json()["total"] == len(server.images())
    pairs = server.ask("GET", "/datastore/?output=train").json()
    assert case in [pair["id"] for pair in pairs]
    assert server.ask("GET", "/datastore/?output=nothing").status_code == 422


def test_a_removed_label_makes_its_image_unlabelled(server: Server, case: str) -> None:
    assert server.ask("DELETE", f"/datastore/label?id={case}&tag=final").status_code == 200
    assert server.ask("GET", f"/datastore/label?label={case}&tag=final").status_code == 404
    assert list((server.studies / ".removed").rglob(f"{case}.nii.gz"))
    assert server.ask("DELETE", f"/datastore/image?id={case}").status_code == 200
    assert case not in server.images()


@pytest.mark.parametrize("output", ["json", "image", "all"])
def test_infer_answers_in_the_requested_form(server: Server, case: str, output: str) -> None:
    answer = server.ask("POST", f"/infer/organnet25d?image={case}&output={output}")
    assert answer.status_code == 200, answer.text
    kind = {"json": "application/json", "image": "application/octet-stream", "all": "multipart/"}
    assert answer.headers["content-type"].startswith(kind[output])
