"""Names of label values in `labels.json` or nnU-Net's `dataset.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.errors import LabelError
from lib.organs.changes import shown
from lib.organs.naming import tg263_name

VALUE_FILES = ("labels.json", "dataset.json")
IGNORE_LABEL = "ignore"
"""nnU-Net's name of regions that were not contoured (documentation/ignore_label.md), in lower case."""


def read_value_names(path: Path, case_id: str) -> dict[int, str]:
    """Return value -> name, from a file that maps names to values or values to names, without the background.

    The file is JSON in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        LabelError: If it is no such file, a name or a value is listed twice, a name stands for several values
            (nnU-Net's regions), a value is not a whole number from 0 to 255, or the background is an organ.
    """
    try:
        content: Any = json.loads(path.read_bytes(), object_pairs_hook=_unique)
        labels: Mapping[str, Any] = content.get("labels", content)
        if all(isinstance(meaning, str) for meaning in labels.values()):
            pairs = [(_value(value), str(name)) for value, name in labels.items()]
        else:
            pairs = [(_value(value), str(name)) for name, value in labels.items()]
        values = _unique(pairs)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LabelError(
            f'{case_id}: {path.name} does not name the label values; {{"labels": {{"Brainstem": 1}}}} '
            f"expected ({error})"
        ) from error
    background = values.pop(0, "background")
    if tg263_name(background) is not None:
        raise LabelError(
            f"{case_id}: {path.name} gives the value 0 to {shown(background)}; 0 is the background: give the "
            "organ another value, in the label too"
        )
    return values


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return pairs as a dict; raise ValueError if a key occurs twice."""
    values: dict[Any, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{str(key)[:80]!r} is listed twice")
        values[key] = value
    return values


def _value(value: object) -> int:
    if isinstance(value, list):
        raise ValueError(
            f"{str(value)[:80]} are the values of a region; one value for each organ is needed, as regions "
            "contain each other"
        )
    number = int(value) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 255:
        raise ValueError(f"{str(value)[:80]!r} is not a whole number from 0 to 255")
    return number
