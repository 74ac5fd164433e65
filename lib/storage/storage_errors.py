"""Errors of the system that mean that files cannot be written, as sentences for users."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from lib.errors import StorageError, StorageFullError

_FULL = "the disk is full"
_READ_ONLY = "the disk or folder is read-only"
_NOT_PERMITTED = "the server has no permission to write there"
_MISPLACED = "a file lies where a folder is expected, or a folder where a file is expected; rename or remove it"
_MISSING = "a file or folder disappeared while it was used"
_EXHAUSTED = "the server has too many files open"
_FAILING = "the disk or network share does not respond as it should"

_BY_ERRNO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
    errno.EEXIST: _MISPLACED,
    errno.ENOTDIR: _MISPLACED,
    errno.EISDIR: _MISPLACED,
    errno.ELOOP: _MISPLACED,
    errno.ENOENT: _MISSING,
    errno.EMFILE: _EXHAUSTED,
    errno.ENFILE: _EXHAUSTED,
    errno.EIO: _FAILING,
    errno.ESTALE: _FAILING,
    errno.ENODEV: _FAILING,
    errno.ENXIO: _FAILING,
    errno.ENOTCONN: _FAILING,
    errno.EHOSTDOWN: _FAILING,
    errno.ETIMEDOUT: _FAILING,
    errno.EREMOTEIO: _FAILING,
}
_BY_SQLITE_MESSAGE = {
    "database or disk is full": _FULL,
    "attempt to write a readonly database": _READ_ONLY,
    "unable to open database file": _NOT_PERMITTED,
    "disk I/O error": _FAILING,
}
"""Messages of https://sqlite.org/rescode.html; SQLAlchemy passes them on as `orig`."""


def storage_trouble(error: BaseException) -> str:
    """Return why files cannot be written, if an error or one of its causes says so; else an empty text."""
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        trouble = _BY_ERRNO[error.errno]
        return trouble if trouble == _FULL else f"{trouble} ({error.strerror})"
    message = str(getattr(error, "orig", ""))
    for part, trouble in _BY_SQLITE_MESSAGE.items():
        if part in message:
            return trouble
    return "" if error.__cause__ is None else storage_trouble(error.__cause__)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, reports a full disk."""
    return storage_trouble(error) == _FULL


@contextmanager
def storing(subject: str, consequence: str) -> Iterator[None]:
    """Raise StorageError in place of the system's errors.

    Args:
        subject: What is stored, as the beginning of the message.
        consequence: What was not done and what to do, as the end of "the disk is full, ...".

    Raises:
        StorageFullError: If the disk is full.
        StorageError: If files cannot be written for another reason.
    """
    try:
        yield
    except Exception as error:
        trouble = storage_trouble(error)
        if not trouble:
            raise
        kind = StorageFullError if trouble == _FULL else StorageError
        raise kind(f"{subject}: {trouble}, {consequence}") from error
