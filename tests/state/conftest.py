from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.state.database import FILE, Database
from lib.state.labels import LabelHistory


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    made = Database(tmp_path / FILE)
    yield made
    made.close()


@pytest.fixture
def history(database: Database) -> LabelHistory:
    """The label versions of that database; none yet."""
    return LabelHistory(database, database.path.parent)
