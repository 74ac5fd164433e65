from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.state.database import FILE, Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    made = Database(tmp_path / FILE)
    yield made
    made.close()
