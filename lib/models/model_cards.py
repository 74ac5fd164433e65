"""Model cards (`<version>.json`) as rows of the model history, and the training cases and decisions in them."""

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lib.errors import CheckpointError
from lib.models.model_history import PROMOTED, REJECTED, STARTER, WAITING, Candidate
from lib.models.registry import Registry, read_card
from lib.storage.atomic_files import finite, write_json
from lib.storage.tables import ModelVersion


def candidate_from_files(registry: Registry, version: str) -> Candidate:
    """Return the history entry of a model that the database does not know, from the files of the registry.

    Values that are missing in a damaged card are left out.

    Raises:
        UnknownModelError: If no model has that version.
    """
    path = registry.weights_path(version)
    card: Mapping[str, Any] = {}
    with contextlib.suppress(CheckpointError):
        card = read_card(path)
    decision, reason = _decision(registry, version, card)
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
        created_at=parse_time(card.get("created")),
    )


def write_decision(registry: Registry, row: ModelVersion, *, by: str) -> None:
    """Write the decision about a model to its card, for servers whose database does not have the model."""
    path = registry.weights_path(row.version)
    decision = {
        "decision": row.decision,
        "reason": row.reason,
        "by": by,
        "decided_at": row.decided_at.isoformat(timespec="seconds") if row.decided_at else None,
        "report": row.report,
    }
    write_json(path.with_suffix(".json"), finite({**read_card(path), "promotion": decision}))


def trained_cases(*folders: Path | None) -> set[str]:
    """Return the ids of all cases that a model in one of the folders was trained on.

    Unreadable cards are skipped: their models do not load either.
    """
    image_ids: set[str] = set()
    for folder in folders:
        for card in folder.glob("*.json") if folder else ():
            try:
                cases = json.loads(card.read_text(encoding="utf-8"))["training"]["cases"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            image_ids |= {str(case) for case in cases} if isinstance(cases, list) else set()
    return image_ids


def parse_time(text: Any) -> datetime | None:
    """Parse an ISO 8601 time, in UTC if it has no zone; return None if it is invalid."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _decision(registry: Registry, version: str, card: Mapping[str, Any]) -> tuple[str, str]:
    for entry in registry.promotions():
        if entry["version"] == version:
            return PROMOTED, str(entry.get("reason") or "")
    starter = registry.starter_path()
    if starter is not None and starter.stem == version:
        return STARTER, "the starter"
    recorded = _mapping(card, "promotion")
    if recorded.get("decision") == REJECTED:
        return REJECTED, str(recorded.get("reason") or "")
    return WAITING, "found in the model folder, without a promotion decision"


def _labels(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    cases = _mapping(card, "config").get("cases") or _mapping(card, "training").get("cases")
    if isinstance(cases, Mapping):
        return [{"image_id": str(k), "version": None, "digest": v} for k, v in cases.items()]
    image_ids = cases if isinstance(cases, list) else []
    return [{"image_id": str(case), "version": None, "digest": None} for case in image_ids]


def _metrics(validation: Mapping[str, Any]) -> dict[str, float | None]:
    dice = _mapping(validation, "organ_dice").items()
    return {str(k): float(v) if isinstance(v, int | float) else None for k, v in dice}


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
