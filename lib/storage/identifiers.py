"""Validation of image ids, tags and session ids, which become paths; image ids of other names."""

import hashlib
import re
import unicodedata
import uuid

from lib.errors import DatastoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()\[\]+=,:;#&@'~-]{0,199}")
"""Image ids; Slicer sends names such as `3: NECK  3.0  B30f`."""
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9 ._()\[\]+=,:;#&@'~-]+")
_NOT_FIRST = re.compile(r"^[^A-Za-z0-9]+")
_MAPPED_LENGTH = 100
"""Largest number of characters that a mapped id keeps of a name."""
_DIGEST_LENGTH = 8
_TAG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def require_image_id(image_id: str) -> str:
    """Return `image_id` if it is a safe file name in the studies folder.

    Raises:
        DatastoreError: If it is not.
    """
    if not _is_image_id(image_id):
        raise DatastoreError(
            f"{image_id[:80]!r} cannot name an image; expected letters, digits, spaces and ._-()[]+=,:;#&@'~ "
            "beginning with a letter or digit, 200 characters at most"
        )
    return image_id


def _is_image_id(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and ".." not in name and not name.endswith((" ", "."))


def image_id_of(name: str) -> str:
    """Return the image id of a scan with this file name (without suffix), folder name or relative path.

    A name that can be an id is its own id. Otherwise accents are dropped, runs of other characters that ids do
    not have become `_`, and the first eight hexadecimal digits of the SHA-256 of the name follow, so that
    the id depends on nothing but the name: `DOE^JOHN` -> `DOE_JOHN-6509c321`. The composed and the decomposed
    Unicode form (NFC, NFD) of a name have the same id, because macOS changes the form of copied names.
    """
    name = unicodedata.normalize("NFC", name)
    if _is_image_id(name):
        return name
    without_accents = "".join(
        c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c)
    )
    kept = _NOT_ALLOWED.sub("_", without_accents).replace("..", "_")
    kept = _NOT_FIRST.sub("", kept)[:_MAPPED_LENGTH].rstrip(" ._-") or "scan"
    # A file name that is not UTF-8 holds surrogates (PEP 383), which only `surrogatepass` encodes.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{kept}-{digest[:_DIGEST_LENGTH]}"


def printable(name: str) -> str:
    """Return a file name that JSON and logs can hold; bytes that are not UTF-8 become hexadecimal escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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
