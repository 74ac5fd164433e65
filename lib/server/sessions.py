"""Sessions: scans that are kept for an hour, outside the store."""

import shutil
import time
from pathlib import Path
from typing import Any

from monailabel.utils.sessions import SessionInfo, Sessions

from lib.errors import DatastoreError
from lib.storage.atomic_files import replacing
from lib.storage.identifiers import require_session_id


class ScanSessions(Sessions):
    """MONAI Label's sessions, made safe.

    An id is a UUID and nothing that leads out of the folder (defect 11). A session that was cut short while it
    was made does not keep the server from starting: MONAI Label's own looks into every one at start.
    """

    def get_session(
        self,
        session_id: str,
        update_ts: bool = True,  # noqa: FBT001, FBT002 - the base's
        fetch_cache: bool = True,  # noqa: FBT001, FBT002 - the base's
    ) -> SessionInfo | None:
        """Return the session, None where there is none, or it has no scan any more.

        Raises:
            DatastoreError: If the id is no UUID.
        """
        try:
            return super().get_session(require_session_id(session_id), update_ts, fetch_cache)
        except (ValueError, OSError, TypeError):
            return None

    def remove_session(self, session_id: str) -> None:
        """Remove a session and its scan.

        Raises:
            DatastoreError: If the id is no UUID.
        """
        super().remove_session(require_session_id(session_id))

    def remove_expired(self) -> int:
        """Remove the sessions that nobody used for as long as they were to be kept; return how many."""
        count = 0
        root = Path(self.store_path)
        for folder in root.iterdir() if root.is_dir() else ():
            try:
                found = self.get_session(folder.name, update_ts=False, fetch_cache=False)
            except DatastoreError:
                continue
            last_s = found.last_access_ts if found else folder.stat().st_mtime
            if last_s + (found.expiry if found else self.expiry) < time.time():
                self.pop(folder.name, None)
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        return count

    def _write_meta_info(self, session_id: str, session_info: Any) -> None:
        with replacing(Path(self.store_path) / session_id / "meta.info") as beside:
            beside.write_text(session_info.to_str(), encoding="utf-8")
