"""The backend of the active model, chosen by a self-test of the running server."""

from pathlib import Path

import pytest

from lib.inference.backend_choice import Choice
from tests.server.running import TINY, put_case, put_model, running
from tests.waiting import wait_until

pytestmark = pytest.mark.server


def test_a_server_chooses_a_backend_by_a_self_test_on_its_own_scans(tmp_path: Path) -> None:
    put_model(tmp_path / "models", TINY)
    with running(tmp_path, conf={"backend": "openvino"}) as server:
        put_case(server, "one", is_labelled=True)
        put_case(server, "two")
        assert server.ask("GET", "/organnet/status").json()["served"]["backend"] == "eager"
        # The first request wakes the self-test, and does not wait for it.
        assert server.ask("POST", "/infer/organnet25d?image=two").status_code == 200

        def choice() -> Choice:
            served = server.ask("GET", "/organnet/status").json()["served"]
            return Choice(served["backend"], served["backend_reason"])

        wait_until(
            lambda: choice().name == "openvino" or "failed" in choice().reason,
            "the self-test has ended",
            context=server.end_of_log,
        )
        assert choice() == Choice("openvino", "set by --conf backend")
        assert server.ask("POST", "/infer/organnet25d?image=two").status_code == 200
