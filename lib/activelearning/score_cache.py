"""What is known of every image, in memory: what the database has is read once, and then only what is new."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from lib.activelearning.image_scores import features_of, image_score, shapes_of
from lib.activelearning.pool import ImageScore, OrganShape
from lib.activelearning.score_records import Kind, Scores
from lib.imaging.quantities import FloatArray
from lib.storage.tables import Score


@dataclass(frozen=True, slots=True)
class TimedScore:
    """A score, and when it was computed."""

    score: ImageScore
    at: datetime


class ScoreCache:
    """Everything that was computed; safe to ask from several threads.

    Args:
        scores: The database's.
    """

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._mutex = threading.Lock()
        self._last_id = 0
        self._done: set[tuple[str, str, Kind]] = set()
        self._halves: dict[tuple[str, str], dict[Kind, Score]] = defaultdict(dict)
        self._dated: dict[str, dict[str, TimedScore]] = defaultdict(dict)
        self._appearance: dict[str, FloatArray] = {}
        self._shapes: dict[str, Mapping[str, OrganShape]] = {}
        self._unreadable: dict[str, str] = {}

    def refresh(self) -> None:
        """Read what was computed since the last time."""
        with self._mutex:
            for row in self._scores.since(self._last_id):
                self._last_id = row.id
                self._take_in(row)

    def _take_in(self, row: Score) -> None:
        kind = Kind(row.kind)
        self._done.add((row.image_id, row.model_version, kind))
        if row.trouble is not None:
            if row.found.get("is_unreadable"):
                self._unreadable[row.image_id] = row.trouble
        elif kind is Kind.APPEARANCE:
            self._appearance[row.image_id] = features_of(row.found)
        elif kind is Kind.DRAWN:
            self._shapes[row.model_version] = shapes_of(row.found)
        else:
            self._halves[row.image_id, row.model_version][kind] = row
            self._put_together(row.image_id, row.model_version)
            self._unreadable.pop(row.image_id, None)

    def _put_together(self, image_id: str, version: str) -> None:
        half = self._halves[image_id, version]
        plain, sampled = half.get(Kind.PREDICTION), half.get(Kind.SAMPLES)
        if plain is None:
            return
        score = image_score(image_id, version, plain.found, sampled.found if sampled else None)
        self._dated[image_id][version] = TimedScore(score, plain.computed_at)
        if sampled is not None:
            # Both are in the score: what they were read from would only fill the memory.
            del self._halves[image_id, version]

    def done(self) -> frozenset[tuple[str, str, Kind]]:
        """Return what was computed, or tried in vain: (image id, model version or SHA-256, kind)."""
        with self._mutex:
            return frozenset(self._done)

    def scores(self, served: str | None) -> dict[str, TimedScore]:
        """Return each image's score by the served model, or by the newest model that looked at it before."""
        with self._mutex:
            return {
                image_id: by_version[served]
                if served in by_version
                else max(by_version.values(), key=lambda d: d.at)
                for image_id, by_version in self._dated.items()
            }

    def appearance(self) -> dict[str, FloatArray]:
        """Return the features of each image alone."""
        with self._mutex:
            return dict(self._appearance)

    def shapes(self, digests: Mapping[str, str]) -> dict[str, Mapping[str, OrganShape]]:
        """Return image id -> shapes of the organs that people drew, for labels of these SHA-256."""
        with self._mutex:
            return {i: self._shapes[d] for i, d in digests.items() if d in self._shapes}

    def unreadable(self) -> dict[str, str]:
        """Return the images that could not be read the last time, and why."""
        with self._mutex:
            return dict(self._unreadable)
