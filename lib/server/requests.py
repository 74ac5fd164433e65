"""What a client may ask for: known keys pass, everything else is left out (defect 11)."""

import json
from collections.abc import Mapping
from typing import Any

from lib.errors import ConfigError

INFER_KEYS = frozenset(
    {"result_extension", "result_dtype", "result_compress", "overlap", "save_label", "label_tag"}
)
TRAIN_KEYS = frozenset({"max_epochs", "max_minutes", "seed", "pretrained"})
STRATEGY_KEYS = frozenset({"client_id", "seed"})
"""Keys that reach a task. Clients send their whole configuration, so others are passed over in silence: paths
(`name`, `train_ds`, `tracking_uri`, `model_filename`, `image`) are among them and never arrive."""


def parse_params(params: str) -> dict[str, Any]:
    """Return the JSON object in a form field.

    Raises:
        ConfigError: If it is none.
    """
    try:
        values = json.loads(params or "{}")
    except ValueError as error:
        raise ConfigError(f"params: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"params: expected a JSON object, found {type(values).__name__}")
    return values


def only(values: Mapping[str, Any] | None, keys: frozenset[str]) -> dict[str, Any]:
    """Return those of `values` that a task may see; of a list, as Slicer sends it, the first element."""
    chosen = {}
    for key in keys & set(values or {}):
        value = (values or {})[key]
        chosen[key] = value[0] if isinstance(value, list) and value else value
    return chosen
