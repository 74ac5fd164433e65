"""What is computed next; a pure function of what is there and what is known."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from lib.activelearning.score_records import Kind

UNKNOWN_QUANTILE = 0.75
"""An image that no model has seen is taken for one of the better ones, until it was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringWork:
    """One thing to compute.

    Attributes:
        kind: What.
        image_id: Of which image.
        model_version: By which model, or of which label (`Kind.DRAWN`: its SHA-256); empty where neither is
            needed.
    """

    kind: Kind
    image_id: str
    model_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What there is to compute of, and what was.

    Attributes:
        unlabelled: Images that may be asked for.
        labelled: Image id -> SHA-256 of its final label.
        served: The model that serves; None where none does.
        known: What was computed, or tried in vain: (image id, model version, kind).
        unreadable: Images of which one pass could not be had: several are not tried.
        interest: Image id -> how much an earlier model was unsure of it: the top of the list comes first.
    """

    unlabelled: Sequence[str]
    labelled: Mapping[str, str]
    served: str | None
    known: Set[tuple[str, str, Kind]]
    unreadable: Set[str] = frozenset()
    interest: Mapping[str, float] = field(default_factory=dict)


def next_work(backlog: Backlog) -> ScoringWork | None:
    """Return what to compute now, None where all is done.

    People's contours come first: they are few, and cheap. Then one pass per image, of the images that were
    most in doubt under an earlier model first, so that the top of the list is right long before its end; those
    that are labelled after those that are not. The dear samples come when everything else is there. Without a
    model only what needs none is computed, and that no longer once there is one.
    """
    for image_id, digest in sorted(backlog.labelled.items()):
        if (image_id, digest, Kind.DRAWN) not in backlog.known:
            return ScoringWork(kind=Kind.DRAWN, image_id=image_id, model_version=digest)
    if backlog.served is None:
        return _first_missing(backlog, Kind.APPEARANCE, [*backlog.unlabelled, *backlog.labelled])
    return _first_missing(
        backlog, Kind.PREDICTION, [*_by_interest(backlog), *sorted(backlog.labelled)]
    ) or _first_missing(
        backlog, Kind.SAMPLES, [i for i in _by_interest(backlog) if i not in backlog.unreadable]
    )


def _first_missing(backlog: Backlog, kind: Kind, image_ids: Sequence[str]) -> ScoringWork | None:
    version = "" if kind is Kind.APPEARANCE else backlog.served or ""
    for image_id in image_ids:
        if (image_id, version, kind) not in backlog.known:
            return ScoringWork(kind=kind, image_id=image_id, model_version=version)
    return None


def _by_interest(backlog: Backlog) -> list[str]:
    values = list(backlog.interest.values())
    unknown = float(np.quantile(values, UNKNOWN_QUANTILE)) if values else 0.0
    return sorted(backlog.unlabelled, key=lambda i: (-backlog.interest.get(i, unknown), i))
