"""A file that ends the process that reads it: the server lives, answers 422, and keeps what was sent."""

import re

import psutil
import pytest

from tests.server.running import Server, put_case
from tests.waiting import wait_until

pytestmark = pytest.mark.server

ENDS_ITK = (
    b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 12 11 10\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,2.5)\nencoding: raw\nendian: little\nspace origin: "
    + b"A" * 5000 + b"\n\n" + bytes(2640)
)  # fmt: skip
"""ITK 5.4's NRRD reader writes beyond the buffer of its error message."""
REFUSED = r"its reader died \(SIG\w+\); the file is damaged, or built to harm the server"


def require_alive(server: Server) -> None:
    assert server.ask("GET", "/info/").status_code == 200
    assert server.process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("PUT", "/datastore/?image=harmful", "file"),
        ("PUT", "/datastore/image?image=harmful", "file"),
        ("PUT", "/session/", "files"),
        ("PUT", "/datastore/label?image=good", "label"),
    ],
)
def test_uploaded_file_that_ends_its_reader_is_refused_and_kept(
    server: Server, method: str, path: str, field: str
) -> None:
    if "good" not in server.images():
        put_case(server, "good")
    answer = server.ask(method, path, files={field: ("harmful.nrrd", ENDS_ITK)})
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert re.search(REFUSED, detail), detail
    pointer = re.search(r"; kept as quarantine/(\S+)$", detail)
    assert pointer, detail
    kept = server.ask("GET", f"/organnet/quarantine/{pointer[1]}")
    assert kept.content == ENDS_ITK
    assert "harmful" not in server.images()
    require_alive(server)


def test_scan_in_the_folder_that_ends_its_reader_is_named_among_the_refused(server: Server) -> None:
    (server.studies / "harmful.nrrd").write_bytes(ENDS_ITK)
    answer = server.ask("POST", "/infer/organnet25d?image=harmful")
    assert answer.status_code == 422, answer.text
    assert re.search(REFUSED, answer.json()["detail"])
    listed = server.ask("GET", "/datastore/?output=all").json()["refused"]
    assert any("harmful.nrrd" in f"{key} {reason}" for key, reason in listed.items()), listed
    require_alive(server)


def test_label_in_the_folder_that_ends_its_reader_is_refused(server: Server) -> None:
    if "good" not in server.images():
        put_case(server, "good")
    (server.studies / "labels" / "final" / "good.nrrd").write_bytes(ENDS_ITK)

    def refusals() -> list[str]:
        labels = server.ask("GET", "/organnet/labels").json()
        return [str(entry) for entry in labels["refused"] if "good.nrrd" in str(entry)]

    (refusal,) = wait_until(refusals, "the refusal of the label")
    assert re.search(REFUSED, refusal)
    require_alive(server)
