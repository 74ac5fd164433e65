"""OHIF's files for tests."""

from lib.server.ohif import distribution
from tests.pacs.orthancs import missing


def require_ohif() -> None:
    """Skip the test if OHIF is not installed, or fail it in CI."""
    if not distribution.folder().is_dir():
        missing("OHIF is not installed: make viewer")
