"""The DICOMweb server behind the proxy: the PACS, or the Orthanc of a studies folder."""

from dataclasses import dataclass

from monailabel.config import settings

from lib.datastores.dicomweb import pacs_login
from lib.errors import PacsError
from lib.server.running_app import get_app
from lib.storage.database import is_url


@dataclass(frozen=True, slots=True)
class Source:
    """Address and credentials of a DICOMweb server."""

    url: str
    """Without a trailing slash."""
    login: tuple[str, str] | None
    prefixes: dict[str, str]
    """Service (`wado`, `qido`, `stow`) -> prefix of its paths."""


def source() -> Source:
    """Return the server that requests are passed on to.

    Raises:
        PacsError: If the Orthanc of the studies folder does not run yet.
    """
    studies = str(settings.MONAI_LABEL_STUDIES)
    if is_url(studies):
        user, password = pacs_login()
        prefixes = {
            "wado": settings.MONAI_LABEL_WADO_PREFIX or "",
            "qido": settings.MONAI_LABEL_QIDO_PREFIX or "",
            "stow": settings.MONAI_LABEL_STOW_PREFIX or "",
        }
        return Source(studies.rstrip("/"), (user, password) if user else None, prefixes)
    folder_pacs = get_app().folder_pacs
    if folder_pacs is None:
        raise PacsError("this server's studies are in a folder, and `--conf ohif_folder` is off")
    orthanc = folder_pacs.orthanc()
    return Source(orthanc.dicomweb_url, orthanc.auth, {})
