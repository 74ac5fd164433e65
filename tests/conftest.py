"""Fixtures of every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.imaging.scans import write_ct, write_label
from lib.labels.history import LabelHistory
from lib.storage.database import FILE, Database
from lib.training.cases import Case
from phantom import head_and_neck_phantom
from tests import forked_processes
from tests.tiny import TINY

pytest_plugins = ["tests.time_budget"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--plain`; here, since pytest asks for options in the uppermost folder only."""
    parser.addoption(
        "--plain",
        action="store_true",
        help="run tests/defects against plain MONAI Label, where they fail (tests/defects/README.md)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Let tests fork the programs they start; not pytest-xdist, which starts its workers."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        forked_processes.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the files that take long first, so that the two processes of `make test` end together."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; the test is skipped where it is not there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ORGANNET_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ORGANNET_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three labelled phantoms of 48 x 48 x 40 voxels."""
    folder = tmp_path_factory.mktemp("cases")
    made = []
    for seed in range(3):
        ct, label = head_and_neck_phantom(
            seed, grid_shape=(48, 48, 40), spacing_mm=(10.0, 10.0, 6.0), labels=TINY.labels
        )
        image = folder / f"case_{seed}.nii.gz"
        write_ct(image, ct)
        write_label(folder / "labels" / "final" / image.name, label)
        made.append(Case(f"case_{seed}", image, folder / "labels" / "final" / image.name))
    return made


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
