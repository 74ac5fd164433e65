"""Fixtures: servers that the tests of one file share.

A forked server starts in little more than a second, so each file has its own: no test depends on the state
left by another file, or on the order and the process in which pytest-xdist runs the files.
"""

from collections.abc import Iterator

import pytest

from tests.server.running import Server, put_model, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model, and the scans of earlier tests of the file."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "models").mkdir()
    put_model(folder / "models")
    with running(folder) as started:
        yield started


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without any model."""
    with running(tmp_path_factory.mktemp("bare")) as started:
        yield started
