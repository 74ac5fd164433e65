"""Several clients at the same time; tests/defects (rows 5 and 9) has the same for plain MONAI Label."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.imaging.scans import write_label
from tests.server.running import Server, put_case, small_ct, two_organs
from tests.waiting import wait_until

pytestmark = pytest.mark.server


def test_concurrent_infers_are_all_answered(server: Server) -> None:
    put_case(server, "busy")
    with ThreadPoolExecutor(4) as pool:
        requests = [
            pool.submit(server.ask, "POST", "/infer/organnet25d?image=busy&output=image")
            for _ in range(6)
        ]
        answers = [a.result() for a in requests]
    assert {a.status_code for a in answers} == {200}
    assert len({gzip.decompress(a.content) for a in answers}) == 1
    queue = server.ask("GET", "/organnet/inference?image=busy").json()
    assert (queue["computing"], queue["waiting"], queue["position"]) == (0, 0, None)


def test_a_request_for_contours_is_cancelled_by_its_id(server: Server) -> None:
    put_case(server, "stopped")
    params = {"params": json.dumps({"deep": True, "job_id": "job-1"})}
    path = "/infer/organnet25d?image=stopped&output=image"

    def cancelled() -> bool:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.ask, "POST", path, data=params)
            # A fast machine may answer before the request is cancelled; then it is sent again.
            while not answer.done():
                if server.ask("DELETE", "/organnet/inference/job-1").status_code == 200:
                    break
            return answer.result().status_code == 409

    wait_until(cancelled, "a request that was cancelled while it computed")
    queue = server.ask("GET", "/organnet/inference?job=job-1").json()
    assert (queue["computing"], queue["position"], queue["progress"]) == (0, None, None)
    refusal = server.ask("DELETE", "/organnet/inference/job-1")
    assert refusal.status_code == 404
    assert "it has ended" in refusal.json()["detail"]


def test_labels_saved_concurrently_are_all_stored(server: Server, tmp_path: Path) -> None:
    write_label(tmp_path / "label.nii.gz", two_organs(small_ct().grid))
    content = (tmp_path / "label.nii.gz").read_bytes()
    cases = [f"crowd_{number}" for number in range(8)]
    for case in cases:
        put_case(server, case)

    def save(case: str) -> int:
        sent = {"label": ("label.nii.gz", content)}
        params = {"params": json.dumps({"client_id": case})}
        path = f"/datastore/label?image={case}"
        return server.ask("PUT", path, files=sent, data=params).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(save, cases)) == {200}
    objects = server.ask("GET", "/datastore/?output=all").json()["objects"]
    assert {c: objects[c]["labels"]["final"]["info"]["client_id"] for c in cases} == {
        c: c for c in cases
    }
