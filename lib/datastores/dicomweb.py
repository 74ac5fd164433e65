"""The scans of a PACS as a MONAI Label store; labels are kept on this server first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from monailabel.config import settings

from lib.datastores.local import FolderStore
from lib.errors import ConfigError, DatastoreError, ScanError
from lib.labels.submission import StoreDependencies
from lib.pacs.client import Pacs
from lib.pacs.series_cache import SeriesCache
from lib.pacs.series_catalog import SeriesCatalog, SeriesRecords
from lib.storage.database import Database

NOT_ALLOWED = "this server does not {action} scans in the PACS; use the PACS's own tools"


def pacs_login() -> tuple[str, str]:
    """Return user name and password for the PACS from MONAI Label's settings; empty if there are none."""
    if settings.MONAI_LABEL_DICOMWEB_USERNAME:
        return settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    return settings.MONAI_LABEL_DATASTORE_USERNAME, settings.MONAI_LABEL_DATASTORE_PASSWORD


def open_pacs(url: str) -> Pacs:
    """Return the PACS at an address, with the credentials and paths in MONAI Label's settings.

    Raises:
        ConfigError: If the address is invalid, or holds a password; addresses are shown to users and logged.
    """
    if "@" in urlsplit(url).netloc:
        raise ConfigError(
            "--studies: the address of the PACS holds a name or a password, which all users would see; leave "
            "them out, and set MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD"
        )
    user, password = pacs_login()
    return Pacs(
        url,
        user=user,
        password=password,
        prefixes={
            "qido": settings.MONAI_LABEL_QIDO_PREFIX,
            "wado": settings.MONAI_LABEL_WADO_PREFIX,
            "stow": settings.MONAI_LABEL_STOW_PREFIX,
        },
    )


class DicomWebStore(FolderStore):
    """A store whose images are the CT series of a PACS, with the SeriesInstanceUID as image id.

    Labels are versions in a folder of this server, as in a studies folder, so that submitting does not depend
    on the PACS (defect 18). Scans are fetched into the same folder when they are needed. The list of images is
    kept in memory (defects 19 and 23).

    Args:
        folder: Folder of scans and labels; not that of the database.
        dependencies: Label values, history, quarantine and callbacks.
        pacs: The PACS.
        database: The workflow database.
        limit_gib: Size limit of the cached scans, in GiB.
    """

    def __init__(
        self,
        folder: Path,
        dependencies: StoreDependencies,
        pacs: Pacs,
        database: Database,
        *,
        limit_gib: float,
    ) -> None:
        records = SeriesRecords(database, pacs.url)
        filters = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
        self.catalog = SeriesCatalog(records, pacs, filters=filters)
        self.cache = SeriesCache(
            folder, pacs, int(limit_gib * 2**30), pinned=dependencies.history.current_digests
        )
        super().__init__(folder, dependencies, catalog=self.catalog)

    def require_image(self, image_id: str) -> Path:
        """Return the folder of a series, which is fetched now if it is not cached.

        Raises:
            DatastoreError: If the PACS lists no such series.
            ScanError: If the series is not a CT that can be contoured.
            PacsError: If the series is not cached and the PACS does not answer.
        """
        series = self.catalog.require(image_id)
        try:
            return self.cache.fetch(image_id, series.study_uid, series.about["slices"])
        except ScanError as error:
            # The headers in the catalog were valid, but the pixels are not.
            self.catalog.refuse(image_id, str(error))
            raise

    def image_of_series(self, series_uid: str) -> str | None:
        """Return the image id of a series, which is its UID; None if it is no image of this store.

        Raises:
            PacsError: If the series was not checked yet and the PACS does not answer.
        """
        try:
            self.catalog.require(series_uid)
        except (DatastoreError, ScanError):
            return None
        return series_uid

    def available_images(self) -> frozenset[str]:
        """Return the images that are cached."""
        return self.cache.cached()

    def refused_images(self) -> Mapping[str, str]:
        """Return SeriesInstanceUID -> reason, of the CT series of the PACS that cannot be contoured."""
        return self.catalog.refused()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:  # noqa: ARG002 - base signature
        """Raise DatastoreError, because this server adds no scans to a PACS."""
        raise DatastoreError(f"{image_id or image_filename}: {NOT_ALLOWED.format(action='add')}")

    def remove_image(self, image_id: str) -> None:
        """Raise DatastoreError, because this server removes no scans from a PACS."""
        raise DatastoreError(f"{image_id}: {NOT_ALLOWED.format(action='remove')}")
