"""Roles of users with and without authentication, each in a process started with that setting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config import APP_DIR

PEOPLE = """
import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from fastapi import HTTPException
from monailabel.endpoints.user.auth import DEFAULT_USER, User
from lib.errors import StateError
from lib.server import access
from lib.server.access import require_label_access
from lib.storage.database import Database
from lib.labels.history import LabelHistory
from lib.assignment.reader_studies import ReaderStudies
from tests.readings import add_reading

folder = Path(sys.argv[1])
database = Database(folder / "workflow.sqlite")
readers = ReaderStudies(database)
history = LabelHistory(database, folder)
app = SimpleNamespace(assignments=SimpleNamespace(readers=readers), label_history=history)
people = {
    name: User(username=name, roles=[f"monailabel-{role}" for role in ("user", *given)])
    for name, *given in (["ada", "annotator"], ["bob", "annotator"], ["rita", "reviewer"], ["root", "admin"])
}
people["no login"] = DEFAULT_USER


def may(action):
    try:
        action()
    except (HTTPException, StateError):
        return "no"
    return "yes"


def row(name, of):
    print(name, *(of(user) for user in people.values()))


row("holder", lambda u: access.holder_of(u, "slicer"))
row("reviews", lambda u: "yes" if access.may_review(u) else "no")
row("releases", lambda u: may(lambda: asyncio.run(access.ANNOTATOR_OR_REVIEWER.dependency(u))))
row("opens", lambda u: may(lambda: asyncio.run(access.REVIEWER.dependency(u))))


def sees(tag, is_version):
    return lambda u: may(lambda: require_label_access(app, "a", tag, u, is_version=is_version))


readers.set_readers("a", 2, "rita")
add_reading(app.label_history, "a", "ada", "one")
row("current", sees("final", False))
row("version", sees("final", True))
row("draft", sees("original", False))
add_reading(app.label_history, "a", "bob", "two")
row("finished", sees("final", False))
"""
"""Program that prints one row per question, with the answers for ada, bob, rita, root and without a login."""


def answers(folder: Path, *, log_in: bool) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(APP_DIR), "MONAI_LABEL_AUTH_ENABLE": str(log_in)}
    command = [sys.executable, "-W", "ignore", "-c", PEOPLE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: row for name, _, row in rows}


@pytest.mark.server
def test_with_logins_each_user_has_their_own_name_and_roles(tmp_path: Path) -> None:
    assert answers(tmp_path, log_in=True) == {
        "holder": "ada bob rita root admin",
        "reviews": "no no yes yes yes",
        "releases": "yes yes yes yes yes",
        "opens": "no no yes yes yes",
        "current": "yes no yes yes yes",
        "version": "yes no yes yes yes",
        "draft": "yes yes yes yes yes",
        "finished": "yes yes yes yes yes",
    }


@pytest.mark.server
def test_without_logins_the_client_id_is_the_name_and_the_current_label_is_hidden(
    tmp_path: Path,
) -> None:
    rows = answers(tmp_path, log_in=False)
    assert rows["holder"] == "slicer slicer slicer slicer slicer"
    assert rows["opens"] == rows["releases"] == "yes yes yes yes yes"
    assert rows["current"] == "no no no no no"
    assert rows["version"] == rows["draft"] == rows["finished"] == "yes yes yes yes yes"
