"""Status of retraining as JSON values, for the status page and for MONAI Label's clients."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lib.jobs.supervisor import tail
from lib.models.model_history import STARTER, WAITING
from lib.retrain.case_sets import EVALUATION
from lib.retrain.model_views import model_summary
from lib.retrain.runs import ACTIVE, RunState
from lib.retrain.service import RetrainingService
from lib.retrain.training_set import PlannedCase
from lib.retrain.trigger import decide
from lib.storage.tables import ModelVersion, Run, now

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


def status(retraining: RetrainingService, version: str | None) -> dict[str, Any]:
    """Return labels, trainings and models.

    Args:
        retraining: Retraining of the studies folder.
        version: The active model; None if there is none.
    """
    cases = retraining.planner.cases()
    state = retraining.planner.trigger_state(cases)
    decision = decide(retraining.settings.get(), state, now())
    runs = retraining.runs.all(limit=HISTORY)
    active = next((run for run in runs if run.state in ACTIVE), None)
    models = retraining.models.all()
    latest = _last_decided(models)
    return {
        "labels": _labels(cases),
        "training": None if active is None else _run(active),
        "next_training": {
            "starts_now": decision.start,
            "reason": decision.reason,
            "next_look": _iso(decision.next_look),
        },
        "last_decision": None if latest is None else model_summary(latest, version),
        "history": {
            "models": [model_summary(row, version) for row in reversed(models[:HISTORY])],
            "promotions": [
                {"version": p.version, "since": _iso(p.since), "reason": p.reason, "by": p.by}
                for p in reversed(retraining.models.promotions()[:HISTORY])
            ],
            "trainings": [_run(run) for run in reversed(runs)],
        },
    }


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
        "oldest_waiting": _iso(
            min((planned.case.submitted_at for planned in waiting), default=None)
        ),
    }


def _run(run: Run) -> dict[str, Any]:
    progress = run.progress
    return {
        "id": run.id,
        "state": run.state,
        "why": run.why,
        "labels": len(run.cases),
        "new_labels": sum(bool(case["is_new"]) for case in run.cases),
        "initial_version": run.initial_version,
        "epoch": progress.get("epoch", 0),
        "total_epochs": progress.get("total_epochs", run.request["recipe"]["schedule"]["epochs"]),
        "loss": progress.get("loss"),
        "mean_dsc": progress.get("metric"),
        "eta_s": progress.get("eta_s") if run.state in ACTIVE else None,
        "candidate": run.candidate,
        "outcome": run.outcome,
        "notes": run.notes,
        "created": _iso(run.created_at),
        "started": _iso(run.started_at),
        "ended": _iso(run.ended_at),
    }


def _last_decided(rows: Sequence[ModelVersion]) -> ModelVersion | None:
    decided = [row for row in rows if row.decision not in (WAITING, STARTER) and row.decided_at]
    return max(decided, key=lambda row: row.decided_at or now(), default=None)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None


def _local(moment: datetime) -> str:
    """Return a time in MONAI Label's format."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
