"""Settings of retraining, which an administrator may change while the server runs."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select

from lib.config import RetrainConfig
from lib.storage.database import Database
from lib.storage.tables import Setting


class Settings:
    """Settings of retraining: the values at the server's start, overridden by an administrator's changes.

    Changes are stored in the database, so they hold after a restart.
    """

    def __init__(self, database: Database, start: RetrainConfig) -> None:
        self._database = database
        self._start = start

    def get(self) -> RetrainConfig:
        """Return the current settings."""
        with self._database.reading() as session:
            changed = {row.key: row.value for row in session.scalars(select(Setting))}
        # A database of another version may hold settings that this version does not have.
        return self._start.changed({k: v for k, v in changed.items() if hasattr(self._start, k)})

    def change(self, values: Mapping[str, Any], *, by: str) -> RetrainConfig:
        """Change some settings, and return all; None resets a setting to its value at the server's start.

        Raises:
            ConfigError: If a key is unknown or a value is invalid; nothing is changed then.
        """
        start = {key: getattr(self._start, key, None) for key in values}
        new_values = {key: start[key] if value is None else value for key, value in values.items()}
        changed = self.get().changed(new_values)
        with self._database.writing() as session:
            session.execute(delete(Setting).where(Setting.key.in_(list(values))))
            session.add_all(
                Setting(key=key, value=getattr(changed, key), by=by)
                for key, value in values.items()
                if value is not None
            )
        return changed
