"""Who contours which case: rows 15 and 16."""

import pytest

from tests.defects import scans
from tests.defects.client import put_scan
from tests.server.running import Server

pytestmark = pytest.mark.server

STRATEGY = "random"
CLIENTS = 8


def test_row_15_two_clients_do_not_get_the_same_case(server: Server) -> None:
    put_scan(server, *(f"shared_{n}" for n in range(CLIENTS)), ct=scans.scan(0))
    given = [
        server.ask(
            "POST", f"/activelearning/{STRATEGY}", json={"client_id": f"annotator-{n}"}
        ).json()["id"]
        for n in range(CLIENTS)
    ]
    assert len(set(given)) == CLIENTS


def test_row_16_asking_twice_within_a_second_is_answered(server: Server) -> None:
    put_scan(server, "only_one", ct=scans.scan(0))
    # With every case asked for a moment ago, the weights of MONAI Label's draw are all 0.
    statuses = {
        server.ask(
            "POST", f"/activelearning/{STRATEGY}", json={"client_id": f"late-{n}"}
        ).status_code
        for n in range(2 * CLIENTS + 8)
    }
    assert statuses == {200}
