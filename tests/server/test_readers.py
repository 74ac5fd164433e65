"""A reader study over HTTP: two readers contour one case independently, and a consensus is computed."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.scans import write_label
from lib.imaging.volumes import LabelVolume
from tests.server.running import TINY, Server, put_case, running, small_ct, two_organs
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server


def submit(server: Server, image: str, client: str, folder: Path, *, shift: int = 0) -> None:
    """Submit a label, moved by `shift` voxels in x."""
    label = two_organs(small_ct().grid)
    path = folder / "sent.nii.gz"
    write_label(path, LabelVolume(np.roll(label.array, shift, 0), label.grid, TINY.labels))
    answer = server.ask(
        "PUT",
        f"/datastore/label?image={image}",
        data={"params": json.dumps({"client_id": client})},
        files={"label": ("label.nii.gz", path.read_bytes())},
    )
    assert answer.status_code == 200, answer.text


def study(server: Server, image: str) -> dict[str, Any]:
    answer = server.ask("GET", f"/organnet/readers/{image}")
    assert answer.status_code == 200, answer.text
    payload: dict[str, Any] = answer.json()
    return payload


def wait_for_study(
    server: Server, image: str, holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    wait_until(lambda: holds(study(server, image)), f"the expected state of {image}",
               context=lambda: f"{study(server, image)}\n{server.end_of_log()}")  # fmt: skip
    return study(server, image)


def holders(server: Server, image: str) -> list[str]:
    leases = server.ask("GET", "/organnet/leases").json()
    return [lease["holder"] for lease in leases if lease["image"] == image]


def ask_for(server: Server, image: str, readers: int) -> None:
    answer = server.ask("POST", f"/organnet/readers/{image}", json={"readers": readers})
    assert answer.status_code == 200, answer.text
    assert answer.json()["readers"] == readers


def status_of_label(server: Server, image: str) -> int:
    return server.ask("GET", f"/datastore/label?label={image}&tag=final").status_code


def test_two_readers_give_a_consensus_that_follows_their_corrections(
    server: Server, tmp_path: Path
) -> None:
    put_case(server, "both")
    ask_for(server, "both", 2)
    for reader in ("ada", "bob"):
        lease = server.ask("POST", "/organnet/leases/both", json={"client_id": reader})
        assert lease.status_code == 200, lease.text
        assert not {"label", "path", "consensus"} & set(lease.json())
    submit(server, "both", "ada", tmp_path)
    assert holders(server, "both") == ["bob"]
    half = study(server, "both")
    assert (half["have_read"], half["is_finished"], half["consensus"]) == (["ada"], False, None)
    hidden = server.ask("GET", "/datastore/label?label=both&tag=final")
    assert hidden.status_code == 409
    assert "1 of 2 readers of this reader study have submitted" in hidden.json()["detail"]

    submit(server, "both", "bob", tmp_path, shift=2)
    done = wait_for_study(server, "both", lambda details: details["consensus"] is not None)
    assert done["is_finished"]
    assert [(r["reader"], r["number"]) for r in done["readings"]] == [("ada", 1), ("bob", 2)]
    # 7 voxels in x, moved by 2: 5 are in both; 4 voxels, moved by 2: 2 are in both.
    dsc = {"Brainstem": pytest.approx(10 / 14), "Parotid_L": pytest.approx(4 / 8)}
    assert done["pairs"] == [{"readers": ["ada", "bob"], "of": [1, 2], "dsc": dsc}]
    assert done["mean_dsc"] == dsc
    made = done["consensus"]
    assert (made["number"], made["method"], made["of"]) == (3, "staple", [1, 2])
    assert made["is_current"]
    assert made["is_of_all_readings"]
    assert status_of_label(server, "both") == 200
    history = server.ask("GET", "/organnet/labels/both").json()
    assert [v["source"] for v in history] == ["client", "client", "consensus"]
    assert (history[2]["author"], history[2]["client"]) == ("", "")
    assert history[2]["organs"] == ["Brainstem", "Parotid_L"]
    assert holders(server, "both") == []

    submit(server, "both", "ada", tmp_path, shift=2)
    again = wait_for_study(server, "both", lambda details: details["consensus"]["number"] == 5)
    assert again["consensus"]["of"] == [2, 4]
    assert again["mean_dsc"] == {"Brainstem": 1.0, "Parotid_L": 1.0}
    assert [p["readers"] for p in again["pairs"]] == [["bob", "ada"]]
    (listed,) = [s for s in server.ask("GET", "/organnet/readers").json() if s["image"] == "both"]
    assert listed["have_read"] == ["bob", "ada"]
    assert listed["mean_dsc"] == again["mean_dsc"]
    # Once the server has adopted a label file that was copied in later, it has seen the earlier file too.
    put_case(server, "later", is_labelled=True)
    assert len(server.ask("GET", "/organnet/labels/both").json()) == 5


def test_a_reviewers_decision_is_not_replaced_by_the_consensus(
    server: Server, tmp_path: Path
) -> None:
    put_case(server, "decided")
    submit(server, "decided", "ada", tmp_path)
    submit(server, "decided", "bob", tmp_path, shift=1)
    assert study(server, "decided")["consensus"] is None
    ask_for(server, "decided", 2)
    wait_for_study(server, "decided", lambda details: details["consensus"] is not None)
    back = server.ask("POST", "/organnet/labels/decided/2/restore")
    assert (back.status_code, back.json()["number"]) == (200, 4)
    time.sleep(1.5)
    details = study(server, "decided")
    assert details["have_read"] == ["ada", "bob"]
    assert (details["consensus"]["number"], details["consensus"]["is_current"]) == (3, False)
    assert details["consensus"]["is_of_all_readings"]


def test_a_killed_server_computes_the_consensus_after_its_restart(tmp_path: Path) -> None:
    conf = {"consensus": "majority"}
    with running(tmp_path, conf=conf) as server:
        put_case(server, "killed")
        ask_for(server, "killed", 2)
        submit(server, "killed", "ada", tmp_path)
        submit(server, "killed", "bob", tmp_path, shift=2)
        server.process.kill()
        server.process.wait(LIMIT_S)
    with running(tmp_path, conf=conf) as server:
        details = wait_for_study(server, "killed", lambda details: details["consensus"] is not None)
        assert (details["consensus"]["method"], details["consensus"]["of"]) == ("majority", [1, 2])
        history = server.ask("GET", "/organnet/labels/killed").json()
        assert [v["source"] for v in history] == ["client", "client", "consensus"]


@pytest.mark.parametrize(
    ("image", "body", "status"),
    [
        ("unknown", {"readers": 2}, 404),
        ("asked", {"readers": 0}, 400),
        ("asked", {"readers": 2.5}, 400),
        ("asked", {"readers": "many"}, 400),
        ("asked", {}, 400),
        ("asked", None, 422),
    ],
)
def test_an_invalid_reader_study_is_refused(
    server: Server, image: str, body: dict[str, Any] | None, status: int
) -> None:
    put_case(server, "asked")
    answer = server.ask("POST", f"/organnet/readers/{image}", json=body)
    assert answer.status_code == status, answer.text
    assert study(server, "asked")["readers"] == 1
    assert server.ask("GET", "/organnet/readers/unknown").status_code == 404
