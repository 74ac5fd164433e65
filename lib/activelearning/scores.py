"""Scores of images: the rows of the database, and a cache of them in memory."""

import gc
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from lib.activelearning.image_scores import (
    to_features,
    to_image_score,
    to_organ_shapes,
    with_samples,
)
from lib.activelearning.pool import ImageScore, OrganShape, ScoreKind
from lib.imaging.quantities import FloatArray
from lib.storage.database import Database
from lib.storage.tables import Score

_ROWS_AT_ONCE = 500
"""Number of rows that are in memory at once while all are read."""
_MANY_ROWS = 5000
"""Number of rows from which the garbage collector is told that they stay."""


class ScoreKey(NamedTuple):
    """Identity of a score; each is computed once."""

    image_id: str
    model_version: str
    """SHA-256 of the label for `ScoreKind.LABEL_SHAPES`; empty for `ScoreKind.APPEARANCE`."""
    kind: ScoreKind


class ScoreRecords:
    """The `Score` rows of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        key: ScoreKey,
        values: Mapping[str, Any],
        *,
        error: str | None = None,
        seconds: float = 0.0,
    ) -> bool:
        """Store a score; return False if there is one already.

        Args:
            key: Image, model and kind.
            values: The computed values; empty if the computation failed.
            error: Error message if it failed.
            seconds: Computing time.
        """
        row = {**key._asdict(), "values": dict(values), "error": error, "seconds": seconds}
        add = insert(Score).values(row).on_conflict_do_nothing().returning(Score.id)
        with self._database.writing() as session:
            return session.execute(add).first() is not None

    def since(self, after_id: int) -> Iterator[Score]:
        """Yield the rows with a larger id than `after_id`, oldest first."""
        query = select(Score).where(Score.id > after_id).order_by(Score.id)
        with self._database.reading() as session:
            yield from session.scalars(query.execution_options(yield_per=_ROWS_AT_ONCE))


@dataclass(frozen=True, slots=True)
class TimedScore:
    """A score, and when it was computed."""

    score: ImageScore
    at: datetime


class ScoreCache:
    """All scores of a database, in memory; each refresh reads the new rows only. Thread-safe."""

    def __init__(self, records: ScoreRecords) -> None:
        self._records = records
        self._mutex = threading.Lock()
        self._last_id = 0
        self._done: set[ScoreKey] = set()
        # Image and model -> samples that came before the prediction.
        self._early_samples: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._scores: dict[str, dict[str, TimedScore]] = defaultdict(dict)
        # The score of each image that is used. These mappings are replaced, not changed, as callers keep them.
        self._served: str | None = None
        self._best: Mapping[str, TimedScore] = {}
        self._rescored: set[str] = set()
        self._appearance: dict[str, FloatArray] = {}
        self._shapes: dict[str, Mapping[str, OrganShape]] = {}
        self._unreadable: dict[str, str] = {}

    def refresh(self) -> None:
        """Read the rows that were added since the last call."""
        with self._mutex:
            number = 0
            for number, row in enumerate(self._records.since(self._last_id), 1):
                if number == 1:
                    self._appearance, self._unreadable = (
                        dict(self._appearance),
                        dict(self._unreadable),
                    )
                self._add(row)
                self._last_id = row.id
        if number >= _MANY_ROWS:
            # The collector would look at millions of objects again and again, and stop all threads meanwhile.
            gc.freeze()

    def _add(self, row: Score) -> None:
        kind = ScoreKind(row.kind)
        self._done.add(ScoreKey(row.image_id, row.model_version, kind))
        if row.error is not None:
            if row.values.get("is_unreadable"):
                self._unreadable[row.image_id] = row.error
            return
        if kind is ScoreKind.APPEARANCE:
            self._appearance[row.image_id] = to_features(row.values)
            return
        if kind is ScoreKind.LABEL_SHAPES:
            self._shapes[row.model_version] = to_organ_shapes(row.values)
            return
        self._unreadable.pop(row.image_id, None)
        if kind is ScoreKind.PREDICTION:
            score = to_image_score(row.image_id, row.model_version, row.values)
            samples = self._early_samples.pop((row.image_id, row.model_version), None)
            self._keep(score if samples is None else with_samples(score, samples), row.computed_at)
        else:
            timed = self._scores.get(row.image_id, {}).get(row.model_version)
            if timed is None:
                self._early_samples[row.image_id, row.model_version] = row.values
            else:
                self._keep(with_samples(timed.score, row.values), timed.at)

    def _keep(self, score: ImageScore, at: datetime) -> None:
        self._scores[score.image_id][score.model_version] = TimedScore(score, at)
        self._rescored.add(score.image_id)

    def done(self) -> frozenset[ScoreKey]:
        """Return the scores that were computed, or failed."""
        with self._mutex:
            return frozenset(self._done)

    def is_done(self, key: ScoreKey) -> bool:
        """Return whether a score was computed, or failed."""
        with self._mutex:
            return key in self._done

    @property
    def revision(self) -> int:
        """Number that changes with each score; see `refresh`."""
        return self._last_id

    def scores(self, served: str | None) -> Mapping[str, TimedScore]:
        """Return each image's score by the active model, or else the most recent one by an earlier model.

        The same object is returned as long as no score is added.
        """
        with self._mutex:
            rescored = self._scores.keys() if served != self._served else self._rescored
            if rescored:
                best = {i: _best(self._scores[i], served) for i in rescored}
                self._best = best if served != self._served else {**self._best, **best}
            self._served, self._rescored = served, set()
            return self._best

    def appearance(self) -> Mapping[str, FloatArray]:
        """Return image id -> features of the image alone."""
        with self._mutex:
            return self._appearance

    def shapes(self, digests: Mapping[str, str]) -> dict[str, Mapping[str, OrganShape]]:
        """Return image id -> organ shapes of its label, given image id -> SHA-256 of the label."""
        with self._mutex:
            return {i: self._shapes[d] for i, d in digests.items() if d in self._shapes}

    def unreadable(self) -> Mapping[str, str]:
        """Return image id -> error message, for images that could not be read at the last attempt."""
        with self._mutex:
            return self._unreadable


def _best(by_version: Mapping[str, TimedScore], served: str | None) -> TimedScore:
    if served is not None and served in by_version:
        return by_version[served]
    return max(by_version.values(), key=lambda timed: timed.at)
