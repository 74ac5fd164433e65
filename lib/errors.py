"""Exceptions of this project.

    OrganNetError
    |-- ConfigError       (ValueError)    a setting, a flag or a recipe is wrong
    |-- ScanError         (ValueError)    a file or folder is not one readable CT volume
    |   |-- GeometryError (ValueError)    its slices, or two grids, do not fit together
    |   `-- ReaderStoppedError (ValueError) the process that read it died, or exceeded a limit
    |-- LabelError        (ValueError)    a label volume is invalid, or does not fit its image
    |-- DatastoreError    (LookupError)   an image, label or session does not exist, or its name is invalid
    |   `-- ImageExistsError (ValueError) another image has the id already
    |-- CheckpointError   (ValueError)    weights do not belong to the network, or are damaged
    |   |-- NoModelError  (LookupError)   there is no active model yet
    |   `-- UnknownModelError (LookupError) no model has that version
    |-- ExportError       (RuntimeError)  a network cannot be written in another format
    |-- TrainingError     (RuntimeError)  a training run cannot start or go on
    |-- StateError        (RuntimeError)  the workflow database cannot be used
    |-- PacsError         (RuntimeError)  the PACS does not respond, or refuses a request
    |   `-- NotDeliveredError (RuntimeError) it responds, but does not deliver a listed object
    |-- QueueFullError    (RuntimeError)  too many requests wait; try again later
    |-- CancelledRequestError (RuntimeError) a user cancelled the request
    `-- StorageError      (RuntimeError)  files cannot be written; existing data is untouched
        `-- StorageFullError              the disk is full

A message states the case, what was found, what was expected, and what to do. It names the image id, never the
patient.
"""

import logging

_log = logging.getLogger(__name__)


class OrganNetError(Exception):
    """Base class of all exceptions of this project."""


class ConfigError(OrganNetError, ValueError):
    """A setting, a flag or a recipe is wrong."""


class ScanError(OrganNetError, ValueError):
    """A file or folder is not one readable CT volume."""


class GeometryError(ScanError):
    """Slices do not form a regular grid, or two grids differ."""


class ReaderStoppedError(ScanError):
    """The process that read a file died, or exceeded a limit (`lib.isolation`)."""


class LabelError(OrganNetError, ValueError):
    """A label volume is invalid, or does not fit its image."""


class DatastoreError(OrganNetError, LookupError):
    """An image, label or session does not exist, or its name is invalid."""


class ImageExistsError(DatastoreError, ValueError):
    """Another image already has the id."""


class CheckpointError(OrganNetError, ValueError):
    """Weights do not belong to the network, or are damaged."""


class NoModelError(CheckpointError, LookupError):
    """There is no active model yet."""


class UnknownModelError(CheckpointError, LookupError):
    """No model has that version."""


class ExportError(OrganNetError, RuntimeError):
    """A network cannot be written in another format."""


class TrainingError(OrganNetError, RuntimeError):
    """A training run cannot start or go on."""


class StateError(OrganNetError, RuntimeError):
    """The workflow database cannot be used."""


class PacsError(OrganNetError, RuntimeError):
    """The PACS does not respond, or refuses a request."""


class NotDeliveredError(PacsError):
    """The PACS responds, but does not deliver one series or object; others may be delivered."""


class QueueFullError(OrganNetError, RuntimeError):
    """Too many requests wait already; this one can be sent again in `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CancelledRequestError(OrganNetError, RuntimeError):
    """A user cancelled the request."""


class StorageError(OrganNetError, RuntimeError):
    """Files cannot be written: nothing new was stored, and existing data is untouched."""


class StorageFullError(StorageError):
    """The disk is full: nothing new was stored, and existing data is untouched."""


CASE_ERRORS = (OrganNetError, OSError)
"""Errors that concern one case of several: a bad file, or one that the disk or network share does not give."""


def case_failure(error: Exception, image_id: str) -> str:
    """Return why one case of several failed, in one line; an unexpected exception is also logged.

    For programs that go on with the next case.
    """
    if isinstance(error, OrganNetError):
        return str(error)
    _log.error("%s: unexpected error", image_id, exc_info=error)
    if isinstance(error, MemoryError):
        return f"{image_id}: not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{image_id}: {error.strerror}"
    reason = (str(error).splitlines() or [""])[0][:200]
    return f"{image_id}: unexpected error ({type(error).__name__}: {reason}); please report it"
