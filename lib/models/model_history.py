"""History of the models in the database: training labels, promotion decisions, and promotions.

`served.json` in the model folder names the active model; this module keeps the history and the reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from lib.errors import StateError
from lib.storage.database import Database
from lib.storage.tables import ModelVersion, Promotion, now

WAITING, PROMOTED, REJECTED, STARTER = "waiting", "promoted", "rejected", "starter"
DECISIONS = (WAITING, PROMOTED, REJECTED, STARTER)
_KNOWN_TO_RUN = ("parent", "run_id", "recipe", "commit", "labels", "labels_seen", "seed")
"""Columns that a run completes in a row that was made from the model's files alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A new model; the fields are those of `lib.storage.tables.ModelVersion`."""

    version: str
    recipe: str
    parent: str | None = None
    run_id: int | None = None
    commit: str | None = None
    labels: Sequence[Mapping[str, Any]] = ()
    """`image_id`, `version` and `digest` of each training label; the last two may be None."""
    seed: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    decision: str = WAITING
    reason: str = ""
    created_at: datetime | None = None


class ModelHistory:
    """The models and promotions of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, candidate: Candidate) -> ModelVersion:
        """Return the row of a model, and add it if there is none; equal weights are one model.

        If a run was killed before it wrote the row, the row was made from the model's files alone. The run
        completes it when it is continued, because only the run knows the label versions.
        """
        with self._database.writing() as session:
            row = session.get(ModelVersion, candidate.version)
            if row is None:
                row = _row(session, candidate)
                session.add(row)
            elif row.run_id is None and candidate.run_id is not None and row.decision == WAITING:
                complete = _row(session, candidate)
                for key in _KNOWN_TO_RUN:
                    setattr(row, key, getattr(complete, key))
        return row

    def decide(
        self,
        version: str,
        *,
        decision: str,
        reason: str,
        by: str = "referee",
        metrics: Mapping[str, float | None] | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> ModelVersion:
        """Record a decision about a model; a promoted model is pending until it is active.

        An earlier decision stays under `earlier_decisions` of the report.

        Args:
            version: A recorded model.
            decision: `promoted`, `rejected` or `waiting`.
            reason: One sentence.
            by: Author of the decision.
            metrics: Organ -> mean DSC; None keeps the present value.
            report: Values that the decision is based on; None keeps the present value.

        Raises:
            StateError: If the model is not recorded, or the decision is unknown.
        """
        if decision not in DECISIONS:
            expected = ", ".join(DECISIONS)
            raise StateError(f"unknown decision {decision!r}; expected one of {expected}")
        with self._database.writing() as session:
            row = _require(session, version)
            new_report = dict(row.report if report is None else report)
            earlier = [*row.report.get("earlier_decisions", []), *_present_decision(row)]
            if earlier:
                new_report["earlier_decisions"] = earlier
            row.report = new_report
            if metrics is not None:
                row.metrics = dict(metrics)
            row.decision, row.reason, row.decided_at = decision, reason, now()
            row.pending = {"reason": reason, "by": by} if decision == PROMOTED else None
        return row

    def set_pending(self, version: str, pending: Mapping[str, str] | None) -> None:
        """Mark a model to be activated again, or not to be activated after all; the decision about it stays.

        Args:
            version: A recorded model.
            pending: `reason` and `by` of the activation; None to cancel it.

        Raises:
            StateError: If the model is not recorded.
        """
        with self._database.writing() as session:
            _require(session, version).pending = None if pending is None else dict(pending)

    def pending(self) -> list[ModelVersion]:
        """Return the models that are to be activated and are not active yet, earliest decision first."""
        query = select(ModelVersion).where(ModelVersion.pending.is_not(None))
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(ModelVersion.decided_at)))

    def add_promotion(
        self,
        version: str,
        *,
        previous: str | None,
        reason: str,
        by: str,
        since: datetime | None = None,
    ) -> None:
        """Record that a model is active; it is no longer pending, nor pruned."""
        with self._database.writing() as session:
            row = Promotion(version=version, previous=previous, reason=reason, by=by)
            row.since = since or now()
            session.add(row)
            model = session.get(ModelVersion, version)
            if model is not None:
                model.pending, model.pruned_at = None, None

    def promotions(self) -> list[Promotion]:
        """Return every change of the active model, newest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(Promotion).order_by(Promotion.id.desc())))

    def was_promoted(self, version: str) -> bool:
        """Return whether a model was ever active."""
        return any(promotion.version == version for promotion in self.promotions())

    def mark_pruned(self, version: str) -> None:
        """Record that a model's weights were removed.

        Raises:
            StateError: If the model is not recorded.
        """
        with self._database.writing() as session:
            _require(session, version).pruned_at = now()

    def get(self, version: str) -> ModelVersion | None:
        """Return a model, or None."""
        with self._database.reading() as session:
            return session.get(ModelVersion, version)

    def all(self) -> list[ModelVersion]:
        """Return every model, newest first."""
        newest = (ModelVersion.created_at.desc(), ModelVersion.version)
        with self._database.reading() as session:
            return list(session.scalars(select(ModelVersion).order_by(*newest)))

    def lineage_labels(self, version: str) -> list[dict[str, Any]]:
        """Return the training labels of a model and its ancestors, each once.

        The list ends at a parent that is not recorded, because its labels are unknown.
        """
        with self._database.reading() as session:
            row = session.get(ModelVersion, version)
            return [] if row is None else _lineage(session, row.labels, row.parent, {version})


def _row(session: Session, candidate: Candidate) -> ModelVersion:
    values = asdict(candidate)
    labels = list(values["labels"])
    values |= {
        "labels": labels,
        "labels_seen": len(_lineage(session, labels, candidate.parent, {candidate.version})),
        "report": {},
        "created_at": candidate.created_at or now(),
        "decided_at": None if candidate.decision == WAITING else now(),
    }
    return ModelVersion(**values)


def _lineage(
    session: Session, own: Sequence[dict[str, Any]], parent: str | None, seen: set[str]
) -> list[dict[str, Any]]:
    """Return the labels of a model and its ancestors; `seen` guards against circular parents."""
    labels = {(label["image_id"], label.get("digest")): label for label in own}
    while parent is not None and parent not in seen:
        seen.add(parent)
        row = session.get(ModelVersion, parent)
        if row is None:
            break
        for label in row.labels:
            labels.setdefault((label["image_id"], label.get("digest")), label)
        parent = row.parent
    return list(labels.values())


def _require(session: Session, version: str) -> ModelVersion:
    row = session.get(ModelVersion, version)
    if row is None:
        raise StateError(f"{version}: the model is not in the model history; record it first")
    return row


def _present_decision(row: ModelVersion) -> list[dict[str, Any]]:
    """Return the decision that a new one replaces, as a list; empty if there is none."""
    if row.decision == WAITING or row.decided_at is None:
        return []
    at = row.decided_at.isoformat(timespec="seconds")
    return [{"decision": row.decision, "reason": row.reason, "decided_at": at}]
