"""What an admin changed while the server ran."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from lib.config import RetrainConfig
from lib.storage.database import Database
from lib.storage.tables import Setting, now


class Settings:
    """The settings of retraining: those of the start, with what was changed since, also by earlier servers."""

    def __init__(self, database: Database, start: RetrainConfig) -> None:
        self._database = database
        self._start = start

    def get(self) -> RetrainConfig:
        """Return the settings as they are now."""
        with self._database.reading() as session:
            changed = {row.key: row.value for row in session.scalars(select(Setting))}
        known = {key: value for key, value in changed.items() if hasattr(self._start, key)}
        return self._start.changed(known)

    def change(self, values: Mapping[str, Any], *, by: str) -> RetrainConfig:
        """Change some, or with None take one back to what the server was started with; return all.

        Raises:
            ConfigError: If a key is not known or a value is wrong; nothing is changed then.
        """
        start = {key: getattr(self._start, key, None) for key in values}
        wanted = {key: start[key] if value is None else value for key, value in values.items()}
        changed = self.get().changed(wanted)
        with self._database.writing() as session:
            for key, value in values.items():
                row = session.get(Setting, key)
                if value is None:
                    if row is not None:
                        session.delete(row)
                elif row is None:
                    session.add(Setting(key=key, value=getattr(changed, key), by=by))
                else:
                    row.value, row.by, row.changed_at = getattr(changed, key), by, now()
        return changed
