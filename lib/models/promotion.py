"""Which model serves, and the record of it: no step that a kill leaves half done stays so (ADR 0016).

The order is always the same: the decision is written to the database (1), `served.json` is replaced (2), the
promotion is written to the database (3). After (1) the model is *due*, after (2) it serves.
"""

import logging
from contextlib import AbstractContextManager
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
"""Who published what the database knew nothing of."""


class Promoter:
    """Changes what serves, one change at a time, whatever processes ask for them."""

    def __init__(self, registry: Registry, models: ModelHistory) -> None:
        self.registry = registry
        self.models = models

    def promote(self, version: str, *, reason: str, by: str) -> None:
        """Let `version` serve from the next request on; nothing changes where it serves already.

        What was decided before and does not serve yet is passed over.

        Raises:
            UnknownModelError: If no model has that version.
            CheckpointError: If its weights are gone or damaged; nothing has changed then.
        """
        with self._holding():
            self._require_loadable(version)
            self._record_pointer()
            self._promote(version, reason=reason, by=by)

    def rollback(self, *, by: str, reason: str = "") -> str:
        """Let the version serve that was promoted before the current one and loads; return it.

        Where there is none, it is the starter.

        Raises:
            UnknownModelError: If there is nothing to go back to.
        """
        with self._holding():
            self._record_pointer()
            self._restore()
            current = self.registry.published_version()
            for version in self._earlier():
                try:
                    self._require_loadable(version)
                except CheckpointError as error:
                    logger.warning("not going back to %s: %s", version, error)
                    continue
                self._promote(version, reason=reason or f"back from {current}", by=by)
                return version
        raise UnknownModelError(
            f"no model was promoted before {current or 'the starter'} that still loads: nothing to go back to"
        )

    def prune(self, *, keep: int) -> list[str]:
        """Remove the weights of models that nobody needs; return their versions.

        The served one, the `keep` promoted last and those that wait for a decision stay. So do the card and the
        row of a model whose weights go.

        Raises:
            CheckpointError: If the served model does not load: others may have to stand in for it.
        """
        pruned = []
        with self._holding(), process_lock(self.registry.folder / LOCK):
            served = self.registry.published_version()
            if served is not None:
                self._require_loadable(served)
            needed = self._needed(keep)
            for row in self.models.all():
                path = self.registry.folder / f"{row.version}.safetensors"
                is_open = row.decision == WAITING or row.pending is not None
                if row.version in needed or is_open or not path.is_file():
                    continue
                # The row comes first: weights that are said to be gone and are not can be pruned again.
                self.models.mark_pruned(row.version)
                path.unlink()
                pruned.append(row.version)
        if pruned:
            logger.info("pruned: %s", ", ".join(pruned))
        return pruned

    def reconcile(self) -> list[str]:
        """Bring the database and what serves together, as after a kill; return what was done, in words.

        `served.json` says what serves. Models that the database does not know get a row, a change of the served
        model that it does not know gets one too, and what was decided to serve and does not is promoted now.
        """
        with self._holding():
            done = [*self._record_unknown(), *self._record_pointer()]
            return [*done, *self._restore(), *self._do_what_is_due()]

    def record_external_changes(self) -> None:
        """Give rows to what other programs wrote and published since; nothing that serves changes."""
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

    def _promote(self, version: str, *, reason: str, by: str) -> None:
        for other in self.models.pending():
            if other.version != version:
                self._pass_over(other, f"{version} was promoted by {by} before it served")
        row = self._row(version)
        if self.registry.published_version() == version:
            if row.pending is not None:
                self.models.clear_pending(version)
            return
        if row.decision in (PROMOTED, STARTER):
            self.models.set_pending(version, reason=reason, by=by)
        else:
            self.models.decide(version, decision=PROMOTED, reason=reason, by=by)
        self._carry_out(version, reason=reason, by=by)

    def _row(self, version: str) -> ModelVersion:
        return self.models.get(version) or self.models.record(
            candidate_from_files(self.registry, version)
        )

    def _carry_out(self, version: str, *, reason: str, by: str) -> None:
        """Do steps 2 and 3 for a model that is due.

        Raises:
            CheckpointError: If it does not load.
        """
        previous = self.registry.published_version()
        self.registry.import_starter(version)
        self.registry.publish(version, reason=reason)
        self.models.add_promotion(version, previous=previous, reason=reason, by=by)

    def _pass_over(self, row: ModelVersion, why: str) -> None:
        """Take back a decision that was never carried out; one that served before only does not again."""
        if row.decision == PROMOTED and not self.models.was_promoted(row.version):
            self.models.decide(row.version, decision=REJECTED, reason=why)
        else:
            self.models.clear_pending(row.version)
        logger.warning("%s does not serve: %s", row.version, why)

    def _earlier(self) -> list[str]:
        """Return the versions to go back to, the last one first."""
        listed = self.registry.promoted()
        starter = self.registry.starter_path()
        own = [starter.stem] if starter and listed and starter.stem != listed[0] else []
        return list(dict.fromkeys([*listed[1:], *own]))

    def _needed(self, keep: int) -> set[str]:
        promoted = [row.version for row in self.models.promotions()]
        latest = list(dict.fromkeys([*self.registry.promoted(), *promoted]))
        served = self.registry.published_version()
        return {*latest[: max(keep, 0)], *([served] if served else [])}

    def _record_unknown(self) -> list[str]:
        known = {row.version for row in self.models.all()}
        starter = self.registry.starter_path()
        versions = [*([starter.stem] if starter else []), *self.registry.versions()]
        found = [
            candidate_from_files(self.registry, v)
            for v in dict.fromkeys(versions)
            if v not in known
        ]
        # Parents first: a model's labels are counted with theirs.
        for candidate in sorted(found, key=lambda c: c.created_at or datetime.now(timezone.utc)):
            self.models.record(candidate)
        return [f"{candidate.version} is recorded, {candidate.decision}" for candidate in found]

    def _record_pointer(self) -> list[str]:
        """Write down a change of what serves that the database does not know."""
        latest = self.models.promotions()[:1]
        version = self.registry.published_version()
        if version is None:
            return []
        if latest and latest[0].version == version:
            row = self.models.get(version)
            if row is not None and row.pending is not None:
                self.models.clear_pending(version)
            return []
        reason, by = self._why(version)
        previous = latest[0].version if latest else None
        since = parse_time(self.registry.promotions()[0].get("since"))
        self.models.add_promotion(version, previous=previous, reason=reason, by=by, since=since)
        return [f"{version} serves, promoted by {by}: recorded"]

    def _why(self, version: str) -> tuple[str, str]:
        """Return why the served version serves, and by whose decision; see to it that its row says the same."""
        said = str(self.registry.promotions()[0].get("reason") or "")
        try:
            row = self._row(version)
        except UnknownModelError as error:
            logger.warning("%s names a model that is not there: %s", SERVED, error)
            return said, ELSEWHERE
        due = row.pending or {}
        reason, by = str(due.get("reason") or said), str(due.get("by") or ELSEWHERE)
        if row.decision not in (PROMOTED, STARTER):
            self.models.decide(version, decision=PROMOTED, reason=reason, by=by)
        return reason, by

    def _restore(self) -> list[str]:
        """Publish what served last, where `served.json` is lost or damaged."""
        if self.registry.published_version() is not None:
            return []
        for version in dict.fromkeys(row.version for row in self.models.promotions()):
            try:
                self._require_loadable(version)
            except CheckpointError as error:
                logger.warning("%s: %s", version, error)
                continue
            reason = "served.json was lost or damaged; this is what served last and loads"
            self._carry_out(version, reason=reason, by="reconcile")
            return [f"{version} serves again: {reason}"]
        return []

    def _do_what_is_due(self) -> list[str]:
        done = []
        for row in self.models.pending():
            due = row.pending or {}
            reason, by = str(due.get("reason", "")), str(due.get("by", ""))
            try:
                self._require_loadable(row.version)
                self._carry_out(row.version, reason=reason, by=by)
            except CheckpointError as error:
                self._pass_over(row, f"it was to serve ({reason}), but: {error}")
                done.append(f"{row.version} was to serve and does not load: rejected")
            else:
                done.append(f"{row.version} was to serve and serves now")
        return done
