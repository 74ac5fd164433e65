"""What the cards that lie beside weights say: a model as a row of the database, the cases it learned from."""

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lib.errors import CheckpointError
from lib.models.model_history import PROMOTED, STARTER, WAITING, Candidate
from lib.models.registry import Registry, read_card


def candidate_of(registry: Registry, version: str) -> Candidate:
    """Return what is to be recorded of a model that the database does not know.

    What a damaged card does not say is left out.

    Raises:
        UnknownModelError: If no model has that version.
    """
    path = registry.weights_path(version)
    card: Mapping[str, Any] = {}
    with contextlib.suppress(CheckpointError):
        card = read_card(path)
    decision, reason = _decision(registry, version)
    config = _mapping(card, "config")
    return Candidate(
        version=version,
        recipe=str(_mapping(card, "recipe").get("name", "")),
        parent=_text(config.get("initial")),
        commit=_text(_mapping(config, "code").get("commit")),
        labels=_labels(card),
        seed=_number(_mapping(card, "training").get("seed")),
        metrics=_metrics(_mapping(card, "validation")),
        decision=decision,
        reason=reason,
        created_at=moment(card.get("created")),
    )


def trained_cases(*folders: Path | None) -> set[str]:
    """Return the ids of all cases that a model in one of the folders was trained on.

    A card that cannot be read says nothing, and neither does its model, which does not load.
    """
    found: set[str] = set()
    for folder in folders:
        for card in folder.glob("*.json") if folder else ():
            try:
                cases = json.loads(card.read_text(encoding="utf-8"))["training"]["cases"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found |= {str(case) for case in cases} if isinstance(cases, list) else set()
    return found


def moment(text: Any) -> datetime | None:
    """Return a moment as `isoformat` wrote it, in UTC where it names no zone; None where it is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _decision(registry: Registry, version: str) -> tuple[str, str]:
    for entry in registry.promotions():
        if entry["version"] == version:
            return PROMOTED, str(entry.get("reason") or "")
    starter = registry.starter_path()
    if starter is not None and starter.stem == version:
        return STARTER, "the starter"
    return WAITING, "found in the model folder; nothing was decided about it"


def _labels(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    cases = _mapping(card, "config").get("cases") or _mapping(card, "training").get("cases")
    if isinstance(cases, Mapping):
        return [{"image_id": str(k), "version": None, "digest": v} for k, v in cases.items()]
    named = cases if isinstance(cases, list) else []
    return [{"image_id": str(case), "version": None, "digest": None} for case in named]


def _metrics(validation: Mapping[str, Any]) -> dict[str, float | None]:
    found = _mapping(validation, "organ_dice").items()
    return {str(k): float(v) if isinstance(v, int | float) else None for k, v in found}


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
