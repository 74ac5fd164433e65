"""The start command of the README, run as a user does; all other tests fork their servers."""

import sys
from pathlib import Path

import pytest

from tests import forked_processes
from tests.server.running import put_case, put_model, running

pytestmark = pytest.mark.server


def test_the_start_command_starts_a_server_that_contours(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    version = put_model(tmp_path / "models")
    with (
        forked_processes.imported_anew(),
        running(tmp_path, command=[str(Path(sys.executable).parent / "monailabel")]) as server,
    ):
        put_case(server, "case")
        assert server.ask("GET", "/info/").json()["models"]["organnet25d"]["version"] == version
        assert server.ask("POST", "/infer/organnet25d?image=case").status_code == 200
