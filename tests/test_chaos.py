"""A short campaign of kills; `make chaos ROUNDS=100` runs a long one."""

from pathlib import Path

import pytest

from tests.chaos.__main__ import main


@pytest.mark.server
@pytest.mark.campaign
def test_no_kill_loses_data(tmp_path: Path) -> None:
    assert main(["--rounds", "3", "--folder", str(tmp_path / "chaos")]) == 0
