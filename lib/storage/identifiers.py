"""Validation of image ids, tags and session ids, which become paths."""

import re
import uuid

from lib.errors import DatastoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()\[\]+=,:;#&@'~-]{0,199}")
"""Image ids; Slicer sends names such as `3: NECK  3.0  B30f`."""
_TAG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def require_image_id(image_id: str) -> str:
    """Return `image_id` if it is a safe file name in the studies folder.

    Raises:
        DatastoreError: If it is not.
    """
    if not _NAME.fullmatch(image_id) or ".." in image_id or image_id.endswith((" ", ".")):
        raise DatastoreError(
            f"{image_id[:80]!r} cannot name an image; expected letters, digits, spaces and ._-()[]+=,:;#&@'~ "
            "beginning with a letter or digit, 200 characters at most"
        )
    return image_id


def require_tag(tag: str) -> str:
    """Return `tag` if it can name a set of labels, such as `final` or `original`.

    Raises:
        DatastoreError: If it cannot.
    """
    if not _TAG.fullmatch(tag):
        raise DatastoreError(
            f"{tag[:80]!r} cannot name a set of labels; expected small letters, digits, - and _, "
            "such as 'final' or 'original'"
        )
    return tag


def require_session_id(session_id: str) -> str:
    """Return `session_id` if it is a UUID, as the server creates them.

    Raises:
        DatastoreError: If it is not.
    """
    try:
        return str(uuid.UUID(session_id))
    except ValueError as error:
        raise DatastoreError(f"{session_id[:80]!r} is not a session id; expected a UUID") from error
