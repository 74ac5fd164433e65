"""What people see of it: labels waiting, the run, what serves and why; and the form the clients know."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lib.models.model_history import STARTER, WAITING
from lib.retrain.case_set_records import REFEREE
from lib.retrain.model_views import summary
from lib.retrain.run_records import ACTIVE, RunState
from lib.retrain.scheduler import log_path, tail
from lib.retrain.service import RetrainingService
from lib.retrain.training_set import Planned
from lib.retrain.trigger import decide
from lib.storage.tables import ModelVersion, Run, now

SHOWN_LINES = 20
HISTORY = 50

_TASK_STATUS: Mapping[str, str] = {
    RunState.QUEUED: "SUBMITTED",
    RunState.RUNNING: "RUNNING",
    RunState.JUDGING: "RUNNING",
    RunState.PROMOTED: "DONE",
    RunState.REJECTED: "DONE",
    RunState.FAILED: "ERROR",
    RunState.STOPPED: "STOPPED",
}


def status(retraining: RetrainingService, served: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return everything at a glance.

    Args:
        retraining: Of the studies.
        served: Version of the served model, and what is known of it; None where none serves.
    """
    cases = retraining.planner.cases()
    situation = retraining.planner.situation(cases)
    decision = decide(retraining.settings.get(), situation, now())
    runs = retraining.runs.all(limit=HISTORY)
    active = next((run for run in runs if run.state in ACTIVE), None)
    models = retraining.models.all()
    version = served["version"] if served else None
    latest = _last_decided(models)
    return {
        "served": served,
        "labels": _labels(cases),
        "training": None if active is None else _run(active),
        "next_training": {
            "starts_now": decision.start,
            "reason": decision.reason,
            "next_look": _iso(decision.next_look),
        },
        "last_decision": None if latest is None else summary(latest, version),
        "history": {
            "models": [summary(row, version) for row in reversed(models[:HISTORY])],
            "promotions": [
                {"version": p.version, "since": _iso(p.since), "reason": p.reason, "by": p.by}
                for p in reversed(retraining.models.promotions()[:HISTORY])
            ],
            "trainings": [_run(run) for run in reversed(runs)],
        },
    }


def task(retraining: RetrainingService, run: Run, model: str) -> dict[str, Any]:
    """Return a run as MONAI Label's clients know a task."""
    shown: dict[str, Any] = {
        "id": str(run.id),
        "status": _TASK_STATUS[run.state],
        "model": model,
        "request": {"model": model, "max_epochs": run.request["recipe"]["schedule"]["epochs"]},
        "start_ts": _local(run.started_at or run.created_at),
        "details": [*run.notes, *tail(log_path(retraining.place.run_dir(run.id)), SHOWN_LINES)],
    }
    if run.ended_at is not None:
        shown |= {"end_ts": _local(run.ended_at), "result": run.outcome}
    return shown


def train_stats(run: Run | None) -> dict[str, Any]:
    """Return the statistics of the newest run, under the names that Slicer and OHIF show."""
    if run is None or not run.progress:
        return {}
    told = run.progress
    is_over = run.state not in ACTIVE
    stats = {
        "start_ts": _local(run.started_at or run.created_at),
        "epoch": told["epoch"],
        "total_epochs": told["total_epochs"],
        "best_metric": told["best_metric"] or 0.0,
        "best_metric_epoch": told["best_epoch"],
        "train": {"loss": told["loss"], "learning_rate": told["learning_rate"]},
        "eval": {"val_mean_dice": told["metric"], **told["organ_dice"]},
        "elapsed_s": round(told["elapsed_s"], 1),
        "eta_s": round(told["eta_s"], 1),
        # Slicer takes a run with a total time as ended.
        "total_time": str(round(told["elapsed_s"], 1)) if is_over else "",
    }
    if is_over:
        published = run.state == RunState.PROMOTED
        stats |= {"version": run.candidate, "published": published, "reason": run.outcome}
    return stats


def _labels(cases: Sequence[Planned]) -> dict[str, Any]:
    waiting = [one for one in cases if one.is_new]
    return {
        "total": len(cases),
        "referee": sum(one.set == REFEREE for one in cases),
        "doubted": {c.case.image_id: list(c.case.doubts) for c in cases if c.case.doubts},
        "waiting": len(waiting),
        "waiting_cases": [one.case.image_id for one in waiting],
        "oldest_waiting": _iso(min((one.case.submitted_at for one in waiting), default=None)),
    }


def _run(run: Run) -> dict[str, Any]:
    told = run.progress
    return {
        "id": run.id,
        "state": run.state,
        "why": run.why,
        "labels": len(run.cases),
        "new_labels": sum(bool(case["is_new"]) for case in run.cases),
        "initial_version": run.initial_version,
        "epoch": told.get("epoch", 0),
        "total_epochs": told.get("total_epochs", run.request["recipe"]["schedule"]["epochs"]),
        "loss": told.get("loss"),
        "mean_dsc": told.get("metric"),
        "eta_s": told.get("eta_s") if run.state in ACTIVE else None,
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
    """Return a moment as MONAI Label writes it."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
