"""The database beside the studies: opened safely from any number of processes, and never half written."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, inspect, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from lib.errors import StateError
from lib.storage.tables import SCHEMA, Base, Meta

logger = logging.getLogger(__name__)

FOLDER = ".organnet"
"""Hidden in the studies folder: the database, label versions, quarantine, backups on their way."""
FILE = "workflow.sqlite"
BUSY_S = 30.0
"""How long a writer waits for another; a transaction here takes milliseconds."""
_IS_WRITING = "is_writing"


class Database:
    """One SQLite file in write-ahead mode (https://sqlite.org/wal.html), synced at every commit.

    A transaction that writes takes the lock at its beginning (`BEGIN IMMEDIATE`), so that what it read is still
    true when it writes, whatever other processes do. A process that is killed leaves either all of a
    transaction or none of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = _engine(path)
        try:
            self._prepare()
        except DatabaseError as error:
            if not isinstance(error.orig, sqlite3.DatabaseError) or isinstance(
                error.orig, sqlite3.OperationalError
            ):
                raise
            self._engine.dispose()
            self._set_aside(error)
            self._engine = _engine(path)
            self._prepare()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session that sees one state of the database, whatever is written meanwhile."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Yield a session whose changes are on disk when the block ends well, and undone when it does not."""
        engine = self._engine.execution_options(**{_IS_WRITING: True})
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def copy_to(self, path: Path) -> None:
        """Write a copy as of this moment, while others go on writing (SQLite's `VACUUM INTO`)."""
        with sqlite3.connect(self.path, timeout=BUSY_S) as connection:
            connection.execute("VACUUM INTO ?", (str(path),))
        connection.close()

    def _prepare(self) -> None:
        with self.writing() as session:
            connection = session.connection()
            if inspect(connection).has_table(Meta.__tablename__):
                self._require_schema(session)
            Base.metadata.create_all(connection)
            if session.get(Meta, "schema") is None:
                session.add(Meta(key="schema", value=str(SCHEMA)))

    def _require_schema(self, session: Session) -> None:
        found = session.scalar(select(Meta.value).where(Meta.key == "schema"))
        if found is not None and int(found) > SCHEMA:
            raise StateError(
                f"{self.path}: written by a newer OrganNet Label (schema {found}, this one knows {SCHEMA}); "
                "update this server, or restore a backup of before"
            )

    def _set_aside(self, error: DatabaseError) -> None:
        """Keep a damaged file under another name: labels and models are files, and are found again."""
        now = time.time_ns()
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.replace(self.path.with_name(f"{self.path.name}.damaged-{now}{suffix}"))
        logger.error(
            "%s is damaged (%s): kept beside it, and made anew from the label versions and models on disk",
            self.path, error.orig,
        )  # fmt: skip


def is_url(studies: str) -> bool:
    """Return whether the studies are those of a DICOMweb server, and not of a folder."""
    return studies.startswith(("http://", "https://"))


def state_folder(studies: str, model_dir: Path) -> Path:
    """Return where the workflow is kept: in the studies folder; for a DICOMweb url, with the models."""
    if is_url(studies):
        return model_dir / FOLDER
    return Path(studies).absolute() / FOLDER


def _engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # Python's own handling of transactions would begin them late.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get(_IS_WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine
