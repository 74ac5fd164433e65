"""Folders of a server: the scans, and what the server writes."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lib.errors import ConfigError
from lib.labels.attributes import INDEX_FILE
from lib.labels.studies_folder import LABELS
from lib.storage.atomic_files import make_folder
from lib.storage.database import FILE, FOLDER, is_url, state_folder
from lib.storage.storage_errors import storage_trouble

_READ_ONLY_ADVICE = (
    "labels need a place: start the server with `--conf state_dir FOLDER`, a folder that it may write to; "
    "then the studies folder is only read"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders of a server; see `places_of`."""

    scans: Path | None
    """The studies folder; None if a PACS has the scans."""
    labels: Path
    """Folder of `labels/` and of the index; for a PACS, also of cached scans."""
    state: Path
    """Folder of the database, the label versions, the quarantine and the training runs."""


def places_of(studies: str, *, model_dir: Path, state_dir: Path | None) -> Places:
    """Return the folders of a server, after a test that they can be used.

    Args:
        studies: The studies folder, or the address of a PACS.
        model_dir: Folder of the models.
        state_dir: Folder of all that the server writes, with the layout of a studies folder; by default the
            studies folder, or for a PACS the folder of the models.

    Raises:
        ConfigError: If the scans cannot be read, or labels not be written.
    """
    state = state_folder(studies, model_dir, state_dir)
    if is_url(studies):
        _require_writable(state, "state_dir" if state_dir else "model_dir", "choose another folder")
        return Places(scans=None, labels=state / "pacs", state=state)
    scans = Path(studies)
    try:
        if state_dir is None:
            make_folder(scans)
        with os.scandir(scans):
            pass
    except OSError as error:
        raise ConfigError(
            f"--studies {scans}: cannot be read as a folder ({error.strerror}); give a folder of scans that "
            "the server may read"
        ) from error
    labels = scans if state_dir is None else state_dir
    if state_dir is None:
        _require_writable(state, "studies", _READ_ONLY_ADVICE)
        _require_writable(scans, "studies", _READ_ONLY_ADVICE)
    else:
        _require_writable(state, "state_dir", "choose a folder that the server may write to")
        own = scans / FOLDER / FILE
        if scans != state_dir and own.is_file() and not (state / FILE).is_file():
            raise ConfigError(
                f"--conf state_dir {state_dir}: {scans} has labels of an earlier server, which this one would "
                f"not show; copy {FOLDER}, {LABELS} and {INDEX_FILE} (if it exists) from there to state_dir "
                "first"
            )
    return Places(scans=scans, labels=labels, state=state)


def _require_writable(folder: Path, setting: str, advice: str) -> None:
    """Raise ConfigError unless files can be written in a folder, which is created if it is missing."""
    try:
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        option = "--studies" if setting == "studies" else f"--conf {setting}"
        trouble = storage_trouble(error) or error.strerror or str(error)
        raise ConfigError(f"{option}: {folder} cannot be written: {trouble}; {advice}") from error
