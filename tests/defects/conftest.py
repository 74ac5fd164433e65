"""Fixtures: the server under test, and one server that several tests share."""

from collections.abc import Iterator

import pytest

from tests.defects.targets import OrganNetLabel, PlainMonaiLabel, Target
from tests.server.running import Server


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """This repository's app, or plain MONAI Label with `--plain`."""
    return PlainMonaiLabel() if request.config.getoption("--plain") else OrganNetLabel()


@pytest.fixture(scope="module")
def server(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model, and the scans of earlier tests; no test trains on it."""
    folder = tmp_path_factory.mktemp("server")
    target.put_model(folder)
    with target.running(folder) as started:
        yield started
