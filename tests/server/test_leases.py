"""Leases over HTTP: their holder, their expiry, and the requests that end them."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lib.imaging.scans import write_label
from lib.storage.database import FILE as DATABASE
from lib.storage.database import Database, state_folder
from lib.storage.tables import Lease
from tests.server.running import Server, put_case, small_ct, two_organs
from tests.waiting import wait_until

pytestmark = pytest.mark.server


def leases(server: Server, image: str) -> list[dict[str, Any]]:
    """Return the active leases of one image; other tests use other images."""
    answer = server.ask("GET", "/organnet/leases")
    assert answer.status_code == 200, answer.text
    return [lease for lease in answer.json() if lease["image"] == image]


def take(server: Server, image: str, client: str, **options: Any) -> dict[str, Any]:
    body = {"client_id": client, **options}
    answer = server.ask("POST", f"/organnet/leases/{image}", json=body)
    assert answer.status_code == 200, answer.text
    lease: dict[str, Any] = answer.json()
    return lease


def submit(server: Server, image: str, client: str, folder: Path, tag: str = "final") -> None:
    path = folder / "sent.nii.gz"
    write_label(path, two_organs(small_ct().grid))
    answer = server.ask(
        "PUT",
        f"/datastore/label?image={image}&tag={tag}",
        data={"params": json.dumps({"client_id": client})},
        files={"label": ("label.nii.gz", path.read_bytes())},
    )
    assert answer.status_code == 200, answer.text


def minutes_left(lease: dict[str, Any]) -> float:
    until = datetime.fromisoformat(lease["until"])
    return (until - datetime.now(until.tzinfo)) / timedelta(minutes=1)


def test_a_case_is_taken_extended_and_released(server: Server) -> None:
    put_case(server, "taken")
    first = take(server, "taken", "ada")
    assert minutes_left(first) == pytest.approx(120, abs=2)
    assert (first["holder"], first["strategy"], first["ended_at"]) == ("ada", "", None)
    refused = server.ask("POST", "/organnet/leases/taken", json={"client_id": "bob"})
    assert refused.status_code == 409
    assert "leased to ada until" in refused.json()["detail"]
    again = take(server, "taken", "ada", minutes=300)
    assert again["since"] == first["since"]
    assert minutes_left(again) == pytest.approx(300, abs=2)
    assert leases(server, "taken") == [again]
    ended = server.ask("DELETE", "/organnet/leases/taken?client_id=ada")
    assert (ended.status_code, ended.json()["ended_by"]) == (200, "release")
    assert leases(server, "taken") == []
    take(server, "taken", "bob")


def test_an_unknown_image_is_not_found_even_if_the_body_is_invalid(server: Server) -> None:
    lease = server.ask("POST", "/organnet/leases/absent", json={"minutes": "soon"})
    study = server.ask("POST", "/organnet/readers/absent", json={"readers": "all"})
    assert (lease.status_code, study.status_code) == (404, 404)


def test_without_logins_any_client_ends_a_lease_by_its_holders_name(server: Server) -> None:
    put_case(server, "left")
    take(server, "left", "ada")
    assert server.ask("DELETE", "/organnet/leases/left?client_id=bob").status_code == 404
    assert server.ask("DELETE", "/organnet/leases/left").status_code == 404
    assert len(leases(server, "left")) == 1
    ended = server.ask("DELETE", "/organnet/leases/left?client_id=bob&holder=ada")
    assert ended.status_code == 200, ended.text
    assert leases(server, "left") == []


def test_a_lease_expires(server: Server) -> None:
    put_case(server, "short")
    until = take(server, "short", "ada", minutes=0.02)["until"]
    wait_until(lambda: not leases(server, "short"), "the lease expires")
    take(server, "short", "bob")
    database = Database(state_folder(str(server.studies), server.models) / DATABASE)
    with database.reading() as session:
        rows = session.query(Lease).filter_by(image_id="short", holder="ada").all()
    database.close()
    assert [(r.ended_by, r.ended_at and r.ended_at.isoformat()) for r in rows] == [
        ("expiry", until)
    ]


def test_a_final_label_ends_the_lease_of_its_author(server: Server, tmp_path: Path) -> None:
    put_case(server, "drawn")
    take(server, "drawn", "ada")
    submit(server, "drawn", "ada", tmp_path, tag="original")
    assert len(leases(server, "drawn")) == 1
    submit(server, "drawn", "ada", tmp_path)
    assert leases(server, "drawn") == []
    refused = server.ask("POST", "/organnet/leases/drawn", json={"client_id": "bob"})
    assert refused.status_code == 409
    assert "contoured already by ada" in refused.json()["detail"]


def test_a_label_of_another_author_ends_the_lease_too(server: Server, tmp_path: Path) -> None:
    put_case(server, "by_another")
    take(server, "by_another", "ada")
    submit(server, "by_another", "bob", tmp_path)
    assert leases(server, "by_another") == []


def test_a_file_copied_into_the_folder_ends_the_lease_too(server: Server) -> None:
    put_case(server, "by_hand_leased")
    take(server, "by_hand_leased", "ada")
    put_case(server, "by_hand_leased", is_labelled=True)
    wait_until(lambda: not leases(server, "by_hand_leased"), "the lease ends")


def test_an_infer_extends_the_lease_of_its_client(server: Server) -> None:
    put_case(server, "at_work")
    take(server, "at_work", "ada", minutes=10)

    def infer(client: str) -> float:
        form = {"params": json.dumps({"client_id": client})}
        answer = server.ask("POST", "/infer/organnet25d?image=at_work", data=form)
        assert answer.status_code == 200, answer.text
        (lease,) = leases(server, "at_work")
        return minutes_left(lease)

    assert infer("bob") == pytest.approx(10, abs=2)
    assert infer("ada") == pytest.approx(120, abs=2)
    server.ask("DELETE", "/organnet/leases/at_work?client_id=ada")
    form = {"params": json.dumps({"client_id": "ada"})}
    assert server.ask("POST", "/infer/organnet25d?image=at_work", data=form).status_code == 200
    assert leases(server, "at_work") == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/organnet/leases/unknown", {}, 404),
        ("POST", "/organnet/leases/..%2fx", {}, 404),
        ("POST", "/organnet/leases/wrong", {"minutes": 0}, 400),
        ("POST", "/organnet/leases/wrong", {"minutes": "long"}, 400),
        ("POST", "/organnet/leases/wrong", {"minutes": 1e9}, 400),
        ("POST", "/organnet/leases/wrong", {"minutes": float("nan")}, 400),
        ("DELETE", "/organnet/leases/wrong", None, 404),
    ],
)
def test_an_invalid_lease_request_is_refused(
    server: Server, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    put_case(server, "wrong")
    sent = None if body is None else json.dumps(body)
    headers = {"content-type": "application/json"}
    answer = server.ask(method, path, data=sent, headers=headers)
    assert answer.status_code == status, answer.text
    assert leases(server, "wrong") == []


def test_a_client_without_an_id_takes_a_case_with_an_empty_request(server: Server) -> None:
    put_case(server, "nameless")
    answer = server.ask("POST", "/organnet/leases/nameless")
    assert (answer.status_code, answer.json()["holder"]) == (200, "")
    assert server.ask("DELETE", "/organnet/leases/nameless").status_code == 200


def next_case(server: Server, client: str) -> dict[str, Any]:
    sample: dict[str, Any] = server.ask(
        "POST", "/activelearning/first", json={"client_id": client}
    ).json()
    return sample


def test_a_skipped_case_is_followed_by_another_one(server: Server) -> None:
    for image in ("skipped_1", "skipped_2"):
        put_case(server, image)
    first = next_case(server, "sam")["id"]
    ended = server.ask("POST", f"/organnet/leases/{first}/skip?client_id=sam")
    assert ended.status_code == 200, ended.text
    assert (ended.json()["image"], ended.json()["ended_by"]) == (first, "skip")
    at, again = (datetime.fromisoformat(ended.json()[k]) for k in ("ended_at", "offered_again_at"))
    assert again - at == timedelta(hours=12)
    assert next_case(server, "sam")["id"] != first
    missing = server.ask("POST", f"/organnet/leases/{first}/skip?client_id=sam")
    assert missing.status_code == 404
    assert "ended by skip" in missing.json()["detail"]


def test_an_unsuitable_image_leaves_the_pool_and_returns(server: Server) -> None:
    put_case(server, "abdomen")
    take(server, "abdomen", "ada")
    body = {"reason": "abdomen, not head and neck", "client_id": "ada"}
    marked = server.ask("POST", "/organnet/unsuitable/abdomen", json=body)
    assert marked.status_code == 200, marked.text
    assert (marked.json()["reason"], marked.json()["by"]) == (body["reason"], "ada")
    assert leases(server, "abdomen") == []
    assert server.ask("GET", "/organnet/unsuitable").json() == [marked.json()]
    assert server.ask("POST", "/organnet/unsuitable/abdomen", json=body).status_code == 409
    assert server.ask("POST", "/organnet/unsuitable/absent", json=body).status_code == 404
    assert (
        server.ask("POST", "/organnet/unsuitable/abdomen", json={"reason": ""}).status_code == 400
    )
    assert server.ask("POST", "/organnet/unsuitable/abdomen", json={}).status_code == 422
    undone = server.ask("DELETE", "/organnet/unsuitable/abdomen?client_id=root")
    assert (undone.status_code, undone.json()["undone_by"]) == (200, "root")
    assert server.ask("GET", "/organnet/unsuitable").json() == []
    audit = server.ask("GET", "/organnet/unsuitable?with_undone=true").json()
    assert audit == [undone.json()]
    assert server.ask("DELETE", "/organnet/unsuitable/abdomen").status_code == 404
