"""A label version as JSON: beside the volumes, and in backups."""

import json
import logging
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.errors import DatastoreError
from lib.storage.identifiers import require_image_id, require_tag
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLAIN = ("image_id", "tag", "number", "digest", "source", "author", "client", "model_version",
          "organs", "doubts", "info")  # fmt: skip


def as_record(version: LabelVersion, parent: int | None) -> dict[str, Any]:
    """Return all that a row says, as JSON holds it; `parent` is the number of the version before it."""
    return {
        **{key: getattr(version, key) for key in _PLAIN},
        "parent": parent,
        "submitted_at": version.submitted_at.isoformat(),
        "hidden_at": None if version.hidden_at is None else version.hidden_at.isoformat(),
    }


def version_of(record: Mapping[str, Any]) -> LabelVersion:
    """Return a row for a record that `checked` let pass; not in place, and without a parent."""
    hidden = record["hidden_at"]
    return LabelVersion(
        **{key: record[key] for key in _PLAIN},
        submitted_at=datetime.fromisoformat(record["submitted_at"]),
        hidden_at=None if hidden is None else datetime.fromisoformat(hidden),
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record in a file; None, and a line in the log, where it holds none."""
    try:
        return checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, DatastoreError) as error:
        logger.error("%s/%s cannot be read (%s): left out", path.parent.name, path.name, error)
        return None


def checked(record: Any) -> dict[str, Any]:
    """Return `record` if it is one that `as_record` could have made: its names become paths.

    Raises:
        ValueError, KeyError, TypeError, DatastoreError: If it could not.
    """
    require_image_id(record["image_id"])
    require_tag(record["tag"])
    if not _DIGEST.fullmatch(record["digest"]):
        raise ValueError(f"{record['digest'][:70]!r} is no SHA-256")
    for key, kind in (("number", int), ("organs", list), ("doubts", list), ("info", dict), ("source", str),
                      ("author", str), ("client", str)):  # fmt: skip
        if not isinstance(record[key], kind):
            raise TypeError(f"{key} is {type(record[key]).__name__}")
    for key in ("submitted_at", "hidden_at"):
        moment = record[key]
        is_never = moment is None and key == "hidden_at"
        if not is_never and datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"{key} has no time zone")
    if not isinstance(record["parent"], int | None):
        raise TypeError("parent is no number")
    return {key: record[key] for key in (*_PLAIN, "parent", "submitted_at", "hidden_at")}
