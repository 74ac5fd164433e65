"""Models, trainings and the status of retraining as JSON values, for HTTP routes and MONAI Label's clients."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lib.errors import CheckpointError, UnknownModelError
from lib.jobs.supervisor import tail
from lib.models.model_history import STARTER, WAITING, ModelHistory
from lib.models.registry import Registry, read_card
from lib.models.served_model import ServedModel
from lib.retrain.runs import ACTIVE, RunState
from lib.retrain.service import RetrainingService
from lib.retrain.training_set import EVALUATION, PlannedCase
from lib.retrain.trigger import decide
from lib.storage.atomic_files import finite
from lib.storage.tables import ModelVersion, Run, now
from lib.training.record import flattened

SUMMARY_COLUMNS = ("version", "parent", "created_at", "decided_at", "decision", "reason", "labels_seen",
                   "pruned_at")  # fmt: skip
"""Columns of the model history in lists of models."""
RUN_COLUMNS = ("id", "state", "why", "initial_version", "candidate", "outcome", "notes")
"""Columns of a training run in lists of runs."""
SHOWN_LINES = 20
"""Number of log lines in the details of a task."""
HISTORY = 50
"""Number of entries in each list of the history."""

_TASK_STATUS: Mapping[str, str] = {
    RunState.QUEUED: "SUBMITTED",
    RunState.RUNNING: "RUNNING",
    RunState.EVALUATING: "RUNNING",
    RunState.PROMOTED: "DONE",
    RunState.REJECTED: "DONE",
    RunState.FAILED: "ERROR",
    RunState.STOPPED: "STOPPED",
}


def list_models(models: ModelHistory, served: ServedModel) -> dict[str, Any]:
    """Return every model, newest first, and the version of the active model.

    `trouble` is the reason if not the promoted model is active; `served` is None if no model can be loaded.
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
    labels = [
        {(label["image_id"], label.get("digest")): label for label in models.lineage_labels(v)}
        for v in (a, b)
    ]
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
            **{name: getattr(row, name) for name in SUMMARY_COLUMNS},
            "mean_dice": mean_dice(row),
            "is_served": row.version == served,
            "is_starter": row.decision == STARTER,
            "is_due": row.pending is not None,
        }
    )


def _pair(a: float | None, b: float | None) -> dict[str, float | None]:
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


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


def status(retraining: RetrainingService, version: str | None) -> dict[str, Any]:
    """Return labels, trainings and models.

    Args:
        retraining: Retraining of the studies folder.
        version: The active model; None if there is none.
    """
    # First the runs: a run that ends meanwhile must not be shown as ended beside labels that wait for it.
    runs = retraining.runs.all(limit=HISTORY)
    cases = retraining.planner.cases()
    state = retraining.planner.trigger_state(cases)
    decision = decide(retraining.settings.get(), state, now())
    active = next((run for run in runs if run.state in ACTIVE), None)
    models = retraining.models.all()
    latest = _last_decided(models)
    values = {
        "labels": _labels(cases),
        "training": None if active is None else _run(active),
        "next_training": {
            "starts_now": decision.start,
            "reason": decision.reason,
            "next_look": decision.next_look,
        },
        "last_decision": None if latest is None else model_summary(latest, version),
        "history": {
            "models": [model_summary(row, version) for row in reversed(models[:HISTORY])],
            "promotions": [
                {"version": p.version, "since": p.since, "reason": p.reason, "by": p.by}
                for p in reversed(retraining.models.promotions()[:HISTORY])
            ],
            "trainings": [_run(run) for run in reversed(runs)],
        },
    }
    return _json_values(values)


def task(retraining: RetrainingService, run: Run, model: str) -> dict[str, Any]:
    """Return a run in the form of a MONAI Label task."""
    values: dict[str, Any] = {
        "id": str(run.id),
        "status": _TASK_STATUS[run.state],
        "model": model,
        "request": {"model": model, "max_epochs": run.request["recipe"]["schedule"]["epochs"]},
        "start_ts": _local(run.started_at or run.created_at),
        "details": [*run.notes, *tail(retraining.folders.log_path(run.id), SHOWN_LINES)],
    }
    if run.ended_at is not None:
        values |= {"end_ts": _local(run.ended_at), "result": run.outcome}
    return values


def train_stats(run: Run | None) -> dict[str, Any]:
    """Return the statistics of a run under the keys that Slicer and OHIF display."""
    if run is None or not run.progress:
        return {}
    progress = run.progress
    is_over = run.state not in ACTIVE
    stats = {
        "start_ts": _local(run.started_at or run.created_at),
        "epoch": progress["epoch"],
        "total_epochs": progress["total_epochs"],
        "best_metric": progress["best_metric"] or 0.0,
        "best_metric_epoch": progress["best_epoch"],
        "train": {"loss": progress["loss"], "learning_rate": progress["learning_rate"]},
        "eval": {"val_mean_dice": progress["metric"], **progress["organ_dice"]},
        "elapsed_s": round(progress["elapsed_s"], 1),
        "eta_s": round(progress["eta_s"], 1),
        # Slicer regards a run that has a total time as ended.
        "total_time": str(round(progress["elapsed_s"], 1)) if is_over else "",
    }
    if is_over:
        published = run.state == RunState.PROMOTED
        stats |= {"version": run.candidate, "published": published, "reason": run.outcome}
    return stats


def _labels(cases: Sequence[PlannedCase]) -> dict[str, Any]:
    waiting = [planned for planned in cases if planned.is_new]
    return {
        "total": len(cases),
        "referee": sum(planned.set == EVALUATION for planned in cases),
        "doubted": {c.case.image_id: list(c.case.doubts) for c in cases if c.case.doubts},
        "waiting": len(waiting),
        "waiting_cases": [planned.case.image_id for planned in waiting],
        "oldest_waiting": min((c.case.submitted_at for c in waiting), default=None),
    }


def _run(run: Run) -> dict[str, Any]:
    progress = run.progress
    total_epochs = run.request["recipe"]["schedule"]["epochs"]
    return {
        **{name: getattr(run, name) for name in RUN_COLUMNS},
        "labels": len(run.cases),
        "new_labels": sum(bool(case["is_new"]) for case in run.cases),
        "epoch": progress.get("epoch", 0),
        "total_epochs": progress.get("total_epochs", total_epochs),
        "loss": progress.get("loss"),
        "mean_dsc": progress.get("metric"),
        "eta_s": progress.get("eta_s") if run.state in ACTIVE else None,
        "created": run.created_at,
        "started": run.started_at,
        "ended": run.ended_at,
    }


def _last_decided(rows: Sequence[ModelVersion]) -> ModelVersion | None:
    decided = [row for row in rows if row.decision not in (WAITING, STARTER) and row.decided_at]
    return max(decided, key=lambda row: row.decided_at or now(), default=None)


def _local(moment: datetime) -> str:
    """Return a time in MONAI Label's format."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
