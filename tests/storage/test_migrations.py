import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select, text

from lib.errors import StateError
from lib.storage.database import FILE, HEAD, Database
from lib.storage.tables import SCHEMA, Base, CaseSet, LabelVersion, Lease, Meta, Setting

OLD_DATABASE = Path(__file__).with_name("before_migrations.sql")


@pytest.fixture
def old_path(tmp_path: Path) -> Path:
    """A database older than the migrations: with rows, without a revision."""
    path = tmp_path / FILE
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_DATABASE.read_text(encoding="utf-8"))
    connection.close()
    return path


def revision(database: Database) -> object:
    with database.reading() as session:
        return session.scalar(text("SELECT version_num FROM alembic_version"))


def test_a_new_database_has_the_schema_of_the_models(database: Database) -> None:
    engine = create_engine(f"sqlite:///{database.path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
    assert revision(database) == HEAD
    assert not list(database.path.parent.glob("*.before-*"))


def test_a_database_from_before_migrations_keeps_its_rows(old_path: Path) -> None:
    database = Database(old_path)
    assert revision(database) == HEAD
    with database.reading() as session:
        first, second = session.scalars(select(LabelVersion).order_by(LabelVersion.id))
        assert (first.author, first.organs) == ("ada", ["Brainstem", "Parotid_L"])
        assert first.changes == second.changes == []
        assert first.submitted_at.isoformat() == "2026-01-02T03:04:05.678901+00:00"
        assert (second.parent_id, second.number) == (first.id, 2)
        assert second.hidden_at is not None
        assert [row.set for row in session.scalars(select(CaseSet))] == ["train"]
        assert [row.value for row in session.scalars(select(Setting))] == [7]
        assert [row.holder for row in session.scalars(select(Lease))] == ["ida"]
        assert [(m.key, m.value) for m in session.scalars(select(Meta))] == [
            ("schema", str(SCHEMA))
        ]
    database.close()
    with sqlite3.connect(old_path) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_a_database_with_some_of_the_tables_gets_the_others(old_path: Path) -> None:
    with sqlite3.connect(old_path) as connection:
        connection.execute("DROP TABLE pacs_object_scans")
    connection.close()
    database = Database(old_path)
    engine = create_engine(f"sqlite:///{old_path}")
    with engine.connect() as migrated:
        assert compare_metadata(MigrationContext.configure(migrated), Base.metadata) == []
    engine.dispose()
    database.close()


def test_a_backup_is_made_before_an_upgrade(old_path: Path) -> None:
    Database(old_path).close()
    with sqlite3.connect(old_path.with_name(f"{FILE}.before-{HEAD}")) as backup:
        assert backup.execute("SELECT COUNT(*) FROM label_versions").fetchone() == (2,)
        names = {name for (name,) in backup.execute("SELECT name FROM sqlite_master")}
        assert "alembic_version" not in names
    backup.close()


def test_concurrent_processes_upgrade_the_schema_once(old_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        databases = list(pool.map(lambda _: Database(old_path), range(8)))
    assert {revision(database) for database in databases} == {HEAD}
    for database in databases:
        database.close()


def test_an_upgrade_that_fails_changes_nothing(
    old_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade

    def fail(*args: object, **kwargs: object) -> None:
        upgrade(*args, **kwargs)  # type: ignore[arg-type]
        raise RuntimeError("the power went out")

    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", fail)
        with pytest.raises(RuntimeError, match="the power went out"):
            Database(old_path)
    with sqlite3.connect(old_path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert "alembic_version" not in names
    connection.close()
    database = Database(old_path)
    assert revision(database) == HEAD
    database.close()


def test_the_newest_schema_is_opened_without_alembic(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: object) -> None:
        raise AssertionError("upgraded again")

    monkeypatch.setattr(Database, "_upgrade", fail)
    Database(database.path).close()


def test_a_newer_revision_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    database = Database(path)
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(StateError, match="newer OrganNet Label"):
        Database(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT * FROM alembic_version").fetchall() == [("9999",)]
    connection.close()
