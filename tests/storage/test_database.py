import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from lib.config import APP_DIR
from lib.errors import StateError
from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import SCHEMA, CaseSet, Meta, Setting

COUNTING = """
import sys
from pathlib import Path
from lib.storage.database import Database
from lib.storage.tables import Setting
database = Database(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    with database.writing() as session:
        for key in ("a", "b"):
            row = session.get(Setting, key)
            if row is None:
                session.add(Setting(key=key, value=1, by=""))
            else:
                row.value += 1
    print(".", end="", flush=True)
"""


def count(database: Database, key: str) -> None:
    with database.writing() as session:
        row = session.get(Setting, key)
        if row is None:
            session.add(Setting(key=key, value=1, by=""))
        else:
            row.value += 1


def values(database: Database) -> dict[str, int]:
    with database.reading() as session:
        return {row.key: row.value for row in session.scalars(select(Setting))}


def test_no_change_is_lost_among_threads_and_connections(database: Database) -> None:
    others = [database, Database(database.path)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: count(others[n % 2], "a"), range(100)))
    assert values(database) == {"a": 100}
    others[1].close()


def test_a_transaction_that_fails_changes_nothing(database: Database) -> None:
    def fail() -> None:
        with database.writing() as session:
            session.add(CaseSet(image_id="case", set="train", why=""))
            session.flush()
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    with database.reading() as session:
        assert session.scalars(select(CaseSet)).all() == []


@pytest.mark.parametrize("_round", range(5))
def test_a_killed_writer_leaves_whole_transactions(tmp_path: Path, _round: int) -> None:
    path = tmp_path / FILE
    writer = subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(path)], stdout=subprocess.PIPE, cwd=APP_DIR
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    reported = len(writer.stdout.read(20 + 7 * _round))
    os.kill(writer.pid, signal.SIGKILL)
    reported += len(writer.stdout.read())
    writer.wait()
    writer.stdout.close()
    database = Database(path)
    counts = values(database)
    database.close()
    assert counts["a"] == counts["b"]
    # The last transaction may be on disk but not reported; no reported one may be missing.
    assert reported <= counts["a"] <= reported + 1


def test_a_damaged_file_is_kept_aside_and_a_new_one_made(tmp_path: Path) -> None:
    path = tmp_path / FILE
    database = Database(path)
    count(database, "a")
    database.close()
    path.write_bytes(b"no database" * 1000)
    reopened = Database(path)
    assert values(reopened) == {}
    reopened.close()
    aside = [
        p
        for p in tmp_path.iterdir()
        if ".damaged-" in p.name and not p.name.endswith(("wal", "shm"))
    ]
    assert [p.read_bytes()[:11] for p in aside] == [b"no database"]


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    database = Database(path)
    with database.writing() as session:
        row = session.get(Meta, "schema")
        assert row is not None
        row.value = str(SCHEMA + 1)
    database.close()
    with pytest.raises(StateError, match="a newer OrganNet Label"):
        Database(path)
    assert path.exists()


def test_a_copy_is_consistent_while_others_write(tmp_path: Path, database: Database) -> None:
    count(database, "a")
    with database.writing() as session:
        session.add(CaseSet(image_id="not yet", set="train", why=""))
        session.flush()
        database.copy_to(tmp_path / "copy.sqlite")
    with sqlite3.connect(tmp_path / "copy.sqlite") as copy:
        assert copy.execute("SELECT key, value FROM settings").fetchall() == [("a", 1)]
        assert copy.execute("SELECT * FROM case_sets").fetchall() == []
    copy.close()


def test_the_state_folder_is_in_the_studies_or_for_a_url_in_the_models(tmp_path: Path) -> None:
    assert (
        state_folder(str(tmp_path / "studies"), Path("/models"))
        == tmp_path / "studies" / ".organnet"
    )
    assert state_folder("http://pacs/dicom-web", Path("/models")) == Path("/models/.organnet")
