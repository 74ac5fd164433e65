"""MONAI Label's session store with checked ids."""

import shutil
import time
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from lib.errors import DatastoreError
from lib.storage.atomic_files import replacing
from lib.storage.identifiers import require_session_id


class ScanSessions(Sessions):
    """Scans that are kept for an hour outside the datastore.

    An id is a UUID, so that it cannot lead out of the folder (defect 11). An incomplete session, left by a
    killed server, does not stop the next start: MONAI Label reads every session when it starts.
    """

    def get_session(
        self,
        session_id: str,
        update_ts: bool = True,  # noqa: FBT001, FBT002 - signature of the base class
        fetch_cache: bool = True,  # noqa: FBT001, FBT002 - signature of the base class
    ) -> SessionInfo | None:
        """Return the session; None if it does not exist or its scan is gone.

        Raises:
            DatastoreError: If the id is not a UUID.
        """
        try:
            return super().get_session(require_session_id(session_id), update_ts, fetch_cache)
        except (ValueError, OSError, TypeError):
            return None

    def remove_session(self, session_id: str) -> None:
        """Remove a session and its scan.

        Raises:
            DatastoreError: If the id is not a UUID.
        """
        super().remove_session(require_session_id(session_id))

    def remove_expired(self) -> int:
        """Remove the sessions whose last use is longer ago than their expiry time; return their number."""
        count = 0
        root = Path(self.store_path)
        for folder in root.iterdir() if root.is_dir() else ():
            try:
                info = self.get_session(folder.name, update_ts=False, fetch_cache=False)
            except DatastoreError:
                continue
            last_s = info.last_access_ts if info else folder.stat().st_mtime
            if last_s + (info.expiry if info else self.expiry) < time.time():
                self.pop(folder.name, None)
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        return count

    def _write_meta_info(self, session_id: str, session_info: SessionInfo) -> None:
        with replacing(Path(self.store_path) / session_id / "meta.info") as temporary:
            temporary.write_text(session_info.to_str(), encoding="utf-8")
