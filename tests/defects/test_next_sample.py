"""Assignment of cases to clients: rows 15 and 16."""

import time

import pytest

from tests.defects import scans
from tests.defects.client import put_scan
from tests.server.running import Server

pytestmark = pytest.mark.server

STRATEGY = "random"
CLIENTS = 8


def test_row_15_two_clients_do_not_get_the_same_case(server: Server) -> None:
    put_scan(server, "shared_1", "shared_2", ct=scans.scan(0))
    samples = []
    for number in range(len(server.images()) + 1):
        # The random choice of MONAI Label weighs cases by whole seconds, and fails within one second (row 16).
        time.sleep(1.1)
        answer = server.ask(
            "POST", f"/activelearning/{STRATEGY}", json={"client_id": f"annotator-{number}"}
        )
        assert answer.status_code == 200, answer.text
        samples.append(answer.json().get("id"))
    cases = [image_id for image_id in samples if image_id is not None]
    assert len(cases) == len(set(cases)) >= 2


def test_row_16_asking_twice_within_a_second_is_answered(server: Server) -> None:
    put_scan(server, "only_one", ct=scans.scan(0))
    # Right after a request for every case, the weights of MONAI Label's random choice are all 0.
    statuses = {
        server.ask(
            "POST", f"/activelearning/{STRATEGY}", json={"client_id": f"late-{n}"}
        ).status_code
        for n in range(2 * CLIENTS + 8)
    }
    assert statuses == {200}
