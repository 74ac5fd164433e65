"""What a client may ask for: known keys pass, everything else is left out (defect 11)."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from lib.assignment.reader_studies import MAX_READERS
from lib.errors import ConfigError

INFER_KEYS = frozenset(
    {
        "result_extension",
        "result_dtype",
        "result_compress",
        "overlap",
        "deep",
        "uncertainty_map",
        "save_label",
        "label_tag",
    }
)
"""Keys that reach a task. Clients send their whole configuration, so others are passed over in silence: paths
(`name`, `train_ds`, `tracking_uri`, `model_filename`, `image`) are among them and never arrive."""

_MAX_SEED = 2**32 - 1


def parse_params(params: str) -> dict[str, Any]:
    """Return the JSON object in a form field.

    Raises:
        ConfigError: If it is none.
    """
    try:
        values = json.loads(params or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"params: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"params: expected a JSON object, found {type(values).__name__}")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def only(values: Mapping[str, Any] | None, keys: frozenset[str]) -> dict[str, Any]:
    """Return those of `values` that a task may see; of a list, as Slicer sends it, the first element."""
    chosen = {}
    for key in keys & set(values or {}):
        value = (values or {})[key]
        chosen[key] = value[0] if isinstance(value, list) and value else value
    return chosen


def as_flag(key: str, value: Any) -> bool:
    """Return a yes or no that a client sent as such, or as text.

    Raises:
        ConfigError: If it is neither.
    """
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise ConfigError(f"{key}: {value!r} is neither true nor false")
    return known[str(value).lower()]


def as_number(key: str, value: Any, low: float, high: float) -> float:
    """Return a number that a client sent as such, or as text.

    Raises:
        ConfigError: If it is none, or not from `low` to `high`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{key}: {value!r} is no number") from error
    if not low <= number <= high:
        raise ConfigError(f"{key}: {number:g} is not from {low:g} to {high:g}")
    return number


_TRAIN: Mapping[str, Callable[[Any], Any]] = {
    "max_epochs": lambda v: int(as_number("max_epochs", v, 1, 1e6)),
    "max_minutes": lambda v: as_number("max_minutes", v, 0, 1e5),
    "seed": lambda v: int(as_number("seed", v, 0, _MAX_SEED)),
    "pretrained": lambda v: as_flag("pretrained", v),
}


def train_options(params: Any) -> dict[str, Any]:
    """Return what a client may say about a training, checked.

    Raises:
        ConfigError: If a value is wrong.
    """
    given = only(params if isinstance(params, dict) else {}, frozenset(_TRAIN))
    return {key: _TRAIN[key](value) for key, value in given.items() if value is not None}


def strategy_options(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a client may say about the next image, checked.

    Raises:
        ConfigError: If the seed or the number of readers is wrong.
    """
    given = only(params, frozenset({"client_id", "seed", "readers"}))
    wishes: dict[str, Any] = {"client_id": str(given.get("client_id") or "")[:200] or None}
    if given.get("seed") is not None:
        wishes["seed"] = int(as_number("seed", given["seed"], 0, _MAX_SEED))
    if given.get("readers") is not None:
        wishes["readers"] = int(as_number("readers", given["readers"], 1, MAX_READERS))
    return wishes
