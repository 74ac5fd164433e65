"""Servers that tests share: starting one takes ten seconds."""

from collections.abc import Iterator

import pytest

from tests.server.running import Server, put_model, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model, and whatever scans earlier tests gave it."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "models").mkdir()
    put_model(folder / "models")
    with running(folder) as started:
        yield started


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without any model."""
    with running(tmp_path_factory.mktemp("bare")) as started:
        yield started
