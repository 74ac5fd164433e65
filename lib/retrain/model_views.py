"""Models as JSON values: the list, the details of one, and the comparison of two."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lib.errors import CheckpointError, UnknownModelError
from lib.models.model_history import STARTER, ModelHistory
from lib.models.registry import Registry, read_card
from lib.models.served_model import ServedModel
from lib.storage.atomic_files import finite
from lib.storage.tables import ModelVersion
from lib.training.record import flattened


def list_models(models: ModelHistory, served: ServedModel) -> dict[str, Any]:
    """Return every model, newest first, and the active one.

    `trouble` says why another model is active than the promoted one; `served` is None if none can be loaded.
    """
    version, error_message = _active_version(served)
    rows = [model_summary(row, version) for row in models.all()]
    return {"served": version, "trouble": error_message, "models": rows}


def describe_model(models: ModelHistory, served: ServedModel, version: str) -> dict[str, Any]:
    """Return the row and the card of a model, and its promotions.

    Raises:
        UnknownModelError: If no model has that version.
    """
    row = _require(models, version)
    columns = {key: getattr(row, key) for key in ModelVersion.__table__.columns.keys()}  # noqa: SIM118 - no mapping
    promotions = [
        {"since": p.since, "previous": p.previous, "reason": p.reason, "by": p.by}
        for p in models.promotions()
        if p.version == version
    ]
    details = {
        **model_summary(row, _active_version(served)[0]),
        **columns,
        "promotions": promotions,
        "card": _card(served.registry, version),
    }
    return _json_values(details)


def compare_models(models: ModelHistory, registry: Registry, a: str, b: str) -> dict[str, Any]:
    """Return two models side by side: DSC per organ, and the labels and recipe fields that differ.

    The difference is `b` minus `a`, None if one of them was not evaluated on the organ. Labels are those that
    the models and their parents learned from.

    Raises:
        UnknownModelError: If no model has one of the versions.
    """
    rows = _require(models, a), _require(models, b)
    organs = sorted({*rows[0].metrics, *rows[1].metrics})
    labels = [{_label_key(label): label for label in models.lineage_labels(v)} for v in (a, b)]
    recipes = [flattened(_mapping(_card(registry, v).get("recipe"))) for v in (a, b)]
    fields = sorted({*recipes[0], *recipes[1]})
    return _json_values(
        {
            "a": a,
            "b": b,
            "mean_dice": _pair(mean_dice(rows[0]), mean_dice(rows[1])),
            "organs": {o: _pair(rows[0].metrics.get(o), rows[1].metrics.get(o)) for o in organs},
            "labels": {
                "only_a": [labels[0][k] for k in labels[0] if k not in labels[1]],
                "only_b": [labels[1][k] for k in labels[1] if k not in labels[0]],
                "both": len(labels[0].keys() & labels[1].keys()),
            },
            "recipe": {
                field: {"a": recipes[0].get(field), "b": recipes[1].get(field)}
                for field in fields
                if recipes[0].get(field) != recipes[1].get(field)
            },
        }
    )


def mean_dice(row: ModelVersion) -> float | None:
    """Return the mean DSC over the organs that the model was evaluated on; None if there are none."""
    values = [value for value in row.metrics.values() if value is not None]
    return sum(values) / len(values) if values else None


def _active_version(served: ServedModel) -> tuple[str | None, str | None]:
    try:
        return served.get().version, served.fallback_reason
    except CheckpointError as error:
        return None, str(error)


def model_summary(row: ModelVersion, served: str | None) -> dict[str, Any]:
    """Return the entry of a model in lists; `served` is the version of the active model."""
    return _json_values(
        {
            "version": row.version,
            "parent": row.parent,
            "created_at": row.created_at,
            "decided_at": row.decided_at,
            "decision": row.decision,
            "reason": row.reason,
            "mean_dice": mean_dice(row),
            "labels_seen": row.labels_seen,
            "is_served": row.version == served,
            "is_starter": row.decision == STARTER,
            "is_due": row.pending is not None,
            "pruned_at": row.pruned_at,
        }
    )


def _pair(a: float | None, b: float | None) -> dict[str, float | None]:
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


def _label_key(label: Mapping[str, Any]) -> tuple[Any, Any]:
    return label["image_id"], label.get("digest")


def _require(models: ModelHistory, version: str) -> ModelVersion:
    row = models.get(version)
    if row is None:
        raise UnknownModelError(f"{version[:120]!r}: no model has that version")
    return row


def _card(registry: Registry, version: str) -> dict[str, Any]:
    """Return a model's card; empty if it is missing or damaged."""
    try:
        return read_card(registry.weights_path(version))
    except CheckpointError:
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with times in ISO 8601, and None for numbers that are not finite."""
    converted: dict[str, Any] = finite(_with_text_times(values))
    return converted


def _with_text_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_text_times(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_with_text_times(v) for v in value]
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
