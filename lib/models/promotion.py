"""Promotion and rollback of models, in steps that can be completed after a kill at any moment (ADR 0016).

The order is always the same: the decision is written to the database (1), `served.json` is replaced (2), the
promotion is written to the database (3). After (1) the model is *pending*, after (2) it is active.
"""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone

from lib.errors import CheckpointError, UnknownModelError
from lib.models.model_cards import candidate_from_files, parse_time
from lib.models.model_history import PROMOTED, REJECTED, STARTER, WAITING, ModelHistory
from lib.models.registry import LOCK, SERVED, Registry, load_model
from lib.storage.process_locks import process_lock
from lib.storage.tables import ModelVersion

logger = logging.getLogger(__name__)

PROMOTION_LOCK = ".promotion.lock"
ELSEWHERE = "another program"
"""Author of promotions that are not in the database."""


@dataclass(frozen=True, slots=True)
class Promoter:
    """Changes the active model, one change at a time over all processes."""

    registry: Registry
    models: ModelHistory

    def promote(self, version: str, *, reason: str, by: str) -> None:
        """Activate `version` from the next request on; nothing changes if it is active already.

        Pending models are cancelled.

        Raises:
            UnknownModelError: If no model has that version.
            CheckpointError: If its weights are missing or damaged; nothing is changed then.
        """
        with self._holding():
            self._require_loadable(version)
            self._record_pointer()
            self._promote(version, reason=reason, by=by)

    def rollback(self, *, by: str, reason: str = "") -> str:
        """Activate the latest earlier promoted model that loads, else the starter; return its version.

        Raises:
            UnknownModelError: If there is no earlier version.
        """
        with self._holding():
            self._record_pointer()
            self._restore()
            current = self.registry.published_version()
            version = self._first_loadable(self._earlier())
            if version is not None:
                self._promote(version, reason=reason or f"rollback from {current}", by=by)
                return version
        raise UnknownModelError(
            f"no version to roll back to: no model promoted before {current or 'the starter'} loads"
        )

    def prune(self, *, keep: int) -> list[str]:
        """Remove the weights of models that are not needed; return their versions.

        The active model, the last `keep` promoted models and those without a decision keep their weights.
        Card and row of a pruned model stay.

        Raises:
            CheckpointError: If the active model does not load: an earlier model may be its fallback.
        """
        pruned = []
        with self._holding(), process_lock(self.registry.folder / LOCK):
            active = self.registry.published_version()
            if active is not None:
                self._require_loadable(active)
            needed = self._needed(keep)
            for row in self.models.all():
                path = self.registry.folder / f"{row.version}.safetensors"
                is_undecided = row.decision == WAITING or row.pending is not None
                if row.version in needed or is_undecided or not path.is_file():
                    continue
                # The row is written first: weights that were not removed after all can be pruned again.
                self.models.mark_pruned(row.version)
                path.unlink()
                pruned.append(row.version)
        if pruned:
            logger.info("pruned: %s", ", ".join(pruned))
        return pruned

    def reconcile(self) -> list[str]:
        """Make the database agree with `served.json`, as after a kill; return a sentence for each change.

        Models without a row get one, an unrecorded change of the active model is recorded, and pending
        models are activated.
        """
        with self._holding():
            done = [*self._record_unknown(), *self._record_pointer()]
            return [*done, *self._restore(), *self._activate_pending()]

    def record_external_changes(self) -> None:
        """Record models and promotions of other programs; the active model does not change."""
        with self._holding():
            self._record_unknown()
            self._record_pointer()

    def _holding(self) -> AbstractContextManager[None]:
        return process_lock(self.registry.folder / PROMOTION_LOCK)

    def _require_loadable(self, version: str) -> None:
        path = self.registry.weights_path(version)
        row = self.models.get(version)
        if row is not None and row.pruned_at is not None and not path.is_file():
            raise CheckpointError(
                f"{version}: its weights were removed on {row.pruned_at:%Y-%m-%d} (prune)"
            )
        load_model(path)

    def _first_loadable(self, versions: Iterable[str]) -> str | None:
        for version in versions:
            try:
                self._require_loadable(version)
            except CheckpointError as error:
                logger.warning("%s is not activated: %s", version, error)
                continue
            return version
        return None

    def _promote(self, version: str, *, reason: str, by: str) -> None:
        for other in self.models.pending():
            if other.version != version:
                self._cancel(other, f"{version} was promoted by {by} before it was active")
        row = self._row(version)
        if self.registry.published_version() == version:
            if row.pending is not None:
                self.models.set_pending(version, None)
            return
        if row.decision in (PROMOTED, STARTER):
            self.models.set_pending(version, {"reason": reason, "by": by})
        else:
            self.models.decide(version, decision=PROMOTED, reason=reason, by=by)
        self._activate(version, reason=reason, by=by)

    def _row(self, version: str) -> ModelVersion:
        return self.models.get(version) or self.models.record(
            candidate_from_files(self.registry, version)
        )

    def _activate(self, version: str, *, reason: str, by: str) -> None:
        """Do steps 2 and 3 for a pending model.

        Raises:
            CheckpointError: If it does not load.
        """
        previous = self.registry.published_version()
        self.registry.import_starter(version)
        self.registry.publish(version, reason=reason)
        self.models.add_promotion(version, previous=previous, reason=reason, by=by)

    def _cancel(self, row: ModelVersion, why: str) -> None:
        """Cancel a pending activation; a model that was never active counts as rejected."""
        if row.decision == PROMOTED and not self.models.was_promoted(row.version):
            self.models.decide(row.version, decision=REJECTED, reason=why)
        else:
            self.models.set_pending(row.version, None)
        logger.warning("%s is not activated: %s", row.version, why)

    def _earlier(self) -> list[str]:
        """Return the versions that a rollback may activate, the last one first."""
        promoted = self.registry.promoted()
        starter = self.registry.starter_path()
        fallback = [starter.stem] if starter and promoted and starter.stem != promoted[0] else []
        return list(dict.fromkeys([*promoted[1:], *fallback]))

    def _needed(self, keep: int) -> set[str]:
        promoted = [row.version for row in self.models.promotions()]
        latest = list(dict.fromkeys([*self.registry.promoted(), *promoted]))
        active = self.registry.published_version()
        return {*latest[: max(keep, 0)], *([active] if active else [])}

    def _record_unknown(self) -> list[str]:
        recorded = {row.version for row in self.models.all()}
        starter = self.registry.starter_path()
        versions = [*([starter.stem] if starter else []), *self.registry.versions()]
        unknown = [
            candidate_from_files(self.registry, version)
            for version in dict.fromkeys(versions)
            if version not in recorded
        ]
        # Parents first: the number of a model's labels includes those of its ancestors.
        for candidate in sorted(unknown, key=lambda c: c.created_at or datetime.now(timezone.utc)):
            self.models.record(candidate)
        return [f"{candidate.version} is recorded, {candidate.decision}" for candidate in unknown]

    def _record_pointer(self) -> list[str]:
        """Record a change of the active model that is not in the database."""
        latest = self.models.promotions()[:1]
        version = self.registry.published_version()
        if version is None:
            return []
        if latest and latest[0].version == version:
            row = self.models.get(version)
            if row is not None and row.pending is not None:
                self.models.set_pending(version, None)
            return []
        reason, by = self._provenance(version)
        previous = latest[0].version if latest else None
        since = parse_time(self.registry.promotions()[0].get("since"))
        self.models.add_promotion(version, previous=previous, reason=reason, by=by, since=since)
        return [f"{version} is active, promoted by {by}: recorded"]

    def _provenance(self, version: str) -> tuple[str, str]:
        """Return the reason and the author of the active model's promotion; correct its row if it differs."""
        recorded = str(self.registry.promotions()[0].get("reason") or "")
        try:
            row = self._row(version)
        except UnknownModelError as error:
            logger.warning("%s names a model that does not exist: %s", SERVED, error)
            return recorded, ELSEWHERE
        pending = row.pending or {}
        reason, by = str(pending.get("reason") or recorded), str(pending.get("by") or ELSEWHERE)
        if row.decision not in (PROMOTED, STARTER):
            self.models.decide(version, decision=PROMOTED, reason=reason, by=by)
        return reason, by

    def _restore(self) -> list[str]:
        """Activate the last promoted model that loads, if `served.json` is missing or damaged."""
        if self.registry.published_version() is not None:
            return []
        promoted = dict.fromkeys(row.version for row in self.models.promotions())
        version = self._first_loadable(promoted)
        if version is None:
            return []
        reason = "served.json was missing or damaged; this is the last promoted model that loads"
        self._activate(version, reason=reason, by="reconcile")
        return [f"{version} is active again: {reason}"]

    def _activate_pending(self) -> list[str]:
        changes = []
        for row in self.models.pending():
            pending = row.pending or {}
            reason, by = str(pending.get("reason", "")), str(pending.get("by", ""))
            try:
                self._require_loadable(row.version)
                self._activate(row.version, reason=reason, by=by)
            except CheckpointError as error:
                self._cancel(row, f"it was to be activated ({reason}), but: {error}")
                changes.append(f"{row.version} was pending and does not load: rejected")
            else:
                changes.append(f"{row.version} was pending and is active now")
        return changes
