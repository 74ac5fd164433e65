"""Fixtures of every test."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; the test is skipped where it is not there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ORGANNET_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ORGANNET_TEST_DATA")
    return folder
