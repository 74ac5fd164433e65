"""The workflow database: one SQLite file beside the studies, opened safely from any number of processes."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, create_engine, event, inspect, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from lib.errors import StateError
from lib.storage.atomic_files import replacing
from lib.storage.process_locks import process_lock
from lib.storage.tables import SCHEMA, Meta

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

FOLDER = ".organnet"
"""Hidden folder in the studies folder: the database, label versions, quarantine, unfinished backups."""
FILE = "workflow.sqlite"
HEAD = f"{SCHEMA:04d}"
"""Newest revision in `lib/storage/migrations`."""
BUSY_S = 30.0
"""Longest time in s that a writer waits for another writer; a transaction takes milliseconds."""
_IS_WRITING = "is_writing"
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = "migration.lock"
"""Lock file beside the database: of several processes that open it, only one upgrades the schema."""


class Database:
    """One SQLite file in write-ahead mode (https://sqlite.org/wal.html), synced at every commit.

    A transaction that writes takes the lock at its beginning (`BEGIN IMMEDIATE`), so that no other process can
    change what it has read before it writes. A killed process leaves either all of a transaction or
    none of it. Opening a new database, or one of an older schema, runs the migrations.

    Raises:
        StateError: If a newer program has written the database.
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
        """Yield a session that sees one state of the database, even if others write meanwhile."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection for queries; a session (`reading`) takes three times as long."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Yield a session whose changes are on disk when the block ends, and undone when it raises."""
        engine = self._engine.execution_options(**{_IS_WRITING: True})
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def copy_to(self, path: Path) -> None:
        """Write a copy of the present state, while others go on writing (SQLite's `VACUUM INTO`)."""
        with sqlite3.connect(self.path, timeout=BUSY_S) as connection:
            connection.execute("VACUUM INTO ?", (str(path),))
        connection.close()

    def _prepare(self) -> None:
        """Upgrade the schema, unless it is the newest; Alembic is not loaded in that usual case."""
        if self._revision() != HEAD:
            with process_lock(self.path.with_name(_MIGRATION_LOCK)):
                revision = self._revision()
                if revision != HEAD:
                    self._upgrade(revision)

    def _revision(self) -> str:
        """Return the schema's revision; empty for a new database, and for one older than the migrations.

        Raises:
            StateError: If the revision is newer than this program's.
        """
        with self.reading() as session:
            tables = inspect(session.connection()).get_table_names()
            revision, schema = "", None
            if "alembic_version" in tables:
                query = text("SELECT version_num FROM alembic_version")
                revision = session.scalar(query) or ""
            if Meta.__tablename__ in tables:
                schema = session.scalar(select(Meta.value).where(Meta.key == "schema"))
        if revision > HEAD or int(schema or 0) > SCHEMA:
            raise StateError(
                f"{self.path}: written by a newer OrganNet Label (schema {revision or schema}, this one reads "
                f"schemas up to {SCHEMA}); update this server, or restore a backup made before the update"
            )
        return revision

    def _upgrade(self, revision: str) -> None:
        """Run the migrations from `revision` to the newest one, in one transaction, after a backup."""
        # Imported here: most processes find the newest schema and need no Alembic.
        from alembic import command
        from alembic.config import Config

        settings = Config()
        settings.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        # SQLite can change a table only by replacing it, which foreign keys would prevent.
        engine = _engine(self.path, foreign_keys=False)
        try:
            if inspect(engine).get_table_names():
                with replacing(self.path.with_name(f"{FILE}.before-{HEAD}")) as backup:
                    self.copy_to(backup)
            writing = engine.execution_options(**{_IS_WRITING: True})
            with writing.begin() as connection:
                settings.attributes["connection"] = connection
                command.upgrade(settings, HEAD)
                # Programs older than the migrations read only this row.
                connection.execute(
                    text("INSERT OR REPLACE INTO meta VALUES ('schema', :schema)"),
                    {"schema": str(SCHEMA)},
                )
        finally:
            engine.dispose()
        logger.info("%s: schema upgraded from %s to %s", self.path, revision or "none", HEAD)

    def _set_aside(self, error: DatabaseError) -> None:
        """Rename a damaged file; its content is rebuilt from the files of labels and models."""
        now = time.time_ns()
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.replace(self.path.with_name(f"{self.path.name}.damaged-{now}{suffix}"))
        logger.error(
            "%s is damaged (%s): renamed, and rebuilt from the label versions and models on disk",
            self.path, error.orig,
        )  # fmt: skip


class _HasDatabase(Protocol):
    @property
    def database(self) -> Database: ...


def transaction(
    function: Callable[Concatenate[Session, _P], _R],
) -> Callable[Concatenate[_HasDatabase, _P], _R]:
    """Return a method that calls `function` with a writing session of `self.database`."""

    def method(self: _HasDatabase, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.database.writing() as session:
            return function(session, *args, **kwargs)

    method.__doc__ = function.__doc__
    return method


def is_url(studies: str) -> bool:
    """Return whether `studies` is the address of a DICOMweb server rather than a folder."""
    return studies.startswith(("http://", "https://"))


def state_folder(studies: str, model_dir: Path, state_dir: Path | None = None) -> Path:
    """Return the folder of the database.

    It lies in `state_dir` if there is one, else in the studies folder, or for a DICOMweb URL with the models.
    """
    if state_dir is not None:
        return state_dir / FOLDER
    if is_url(studies):
        return model_dir / FOLDER
    return Path(studies).absolute() / FOLDER


def _engine(path: Path, *, foreign_keys: bool = True) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})
    checks = "ON" if foreign_keys else "OFF"

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # Python's sqlite3 would begin a transaction only at its first write: switch that off.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"foreign_keys={checks}"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        is_writing = connection.get_execution_options().get(_IS_WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")

    return engine
