"""Scores of images: the rows of the database, and a cache of them in memory."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from lib.activelearning.image_scores import to_features, to_image_score, to_organ_shapes
from lib.activelearning.pool import ImageScore, OrganShape, ScoreKind
from lib.imaging.quantities import FloatArray
from lib.storage.database import Database
from lib.storage.tables import Score


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
        with self._database.reading() as session:
            yield from session.scalars(select(Score).where(Score.id > after_id).order_by(Score.id))


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
        # Rows of one image and model, until both kinds are there to be combined.
        self._partial: dict[tuple[str, str], dict[ScoreKind, Score]] = defaultdict(dict)
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
            rows = list(self._records.since(self._last_id))
            if not rows:
                return
            self._last_id = rows[-1].id
            self._appearance, self._unreadable = dict(self._appearance), dict(self._unreadable)
            for row in rows:
                self._add(row)

    def _add(self, row: Score) -> None:
        kind = ScoreKind(row.kind)
        self._done.add(ScoreKey(row.image_id, row.model_version, kind))
        if row.error is not None:
            if row.values.get("is_unreadable"):
                self._unreadable[row.image_id] = row.error
        elif kind is ScoreKind.APPEARANCE:
            self._appearance[row.image_id] = to_features(row.values)
        elif kind is ScoreKind.LABEL_SHAPES:
            self._shapes[row.model_version] = to_organ_shapes(row.values)
        else:
            self._partial[row.image_id, row.model_version][kind] = row
            self._combine(row.image_id, row.model_version)
            self._unreadable.pop(row.image_id, None)

    def _combine(self, image_id: str, version: str) -> None:
        """Combine the prediction and, if they are computed, the samples into one score."""
        rows = self._partial[image_id, version]
        prediction, samples = rows.get(ScoreKind.PREDICTION), rows.get(ScoreKind.SAMPLES)
        if prediction is None:
            return
        score = to_image_score(
            image_id, version, prediction.values, samples.values if samples else None
        )
        self._scores[image_id][version] = TimedScore(score, prediction.computed_at)
        self._rescored.add(image_id)
        if samples is not None:
            # The score contains both now; the rows are released to save memory.
            del self._partial[image_id, version]

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
