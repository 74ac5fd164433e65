"""Reader studies as a choice sees them: who has read an image, who may, and when a consensus is due."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.orm import Session

from lib.assignment import leases, reader_studies
from lib.assignment.reader_studies import may_be_leased, readings_by_reader
from lib.labels.history import CONSENSUS, FINAL, LabelHistory
from lib.storage.tables import LabelVersion

MIN_FOR_CONSENSUS = 2
_NOBODY: frozenset[str] = frozenset()


def readings(history: LabelHistory, image_id: str) -> list[LabelVersion]:
    """Return the newest visible reading of each reader of an image, oldest first."""
    return list(readings_by_reader(history.history(image_id, FINAL)).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentState:
    """Who is asked for, has read, and holds each image, at one moment.

    Attributes:
        wanted: Image id -> readers, of the images that are in a reader study; 1 for all others.
        submitted: Image id -> who has submitted a reading.
        holding: Image id -> who has a lease.
    """

    wanted: Mapping[str, int] = field(default_factory=dict)
    submitted: Mapping[str, Set[str]] = field(default_factory=dict)
    holding: Mapping[str, Set[str]] = field(default_factory=dict)

    def is_finished(self, image_id: str) -> bool:
        """Return whether as many readers have submitted as the image is to have."""
        return len(self.submitted.get(image_id, _NOBODY)) >= self.wanted.get(image_id, 1)


def assignment_state(session: Session, at: datetime) -> AssignmentState:
    """Return how every image stands; expired leases are closed.

    Args:
        session: Of `Database.writing`, the one that a lease is then granted in.
        at: This moment.
    """
    holding: dict[str, set[str]] = {}
    for lease in leases.active(session, at):
        holding.setdefault(lease.image_id, set()).add(lease.holder)
    return AssignmentState(
        wanted=reader_studies.wanted(session),
        submitted=reader_studies.submitted(session),
        holding=holding,
    )


def may_lease(holder: str, image_id: str, now: AssignmentState) -> bool:
    """Return whether somebody may be given an image; `lib.assignment.leases.grant` refuses what this does."""
    return may_be_leased(
        wanted=now.wanted.get(image_id, 1),
        submitted=now.submitted.get(image_id, _NOBODY),
        holding=now.holding.get(image_id, _NOBODY),
        asks=holder,
    )


def newest_consensus(versions: Sequence[LabelVersion]) -> LabelVersion | None:
    """Return the newest visible consensus among the versions of one final label, oldest first."""
    made = [v for v in versions if v.source == CONSENSUS and v.hidden_at is None]
    return made[-1] if made else None


def reading_numbers(consensus: LabelVersion) -> list[int]:
    """Return the numbers of the readings that a consensus was made of."""
    return list(consensus.info.get(CONSENSUS, {}).get("of", ()))


def is_made_from(
    consensus: LabelVersion, found: Sequence[LabelVersion], versions: Sequence[LabelVersion]
) -> bool:
    """Return whether a consensus was made of the contours in `found`, and of no others.

    A reading that was brought back from the history has another number and the same contours: it asks for no
    new consensus, and stays the current label if a reviewer decided so.
    """
    digests = {version.number: version.digest for version in versions}
    of = sorted(digests.get(number, "") for number in reading_numbers(consensus))
    return of == sorted(version.digest for version in found)


def due(versions: Sequence[LabelVersion]) -> list[LabelVersion]:
    """Return the readings that a consensus is to be made of now, oldest first; none where it is not due.

    Args:
        versions: All of one image's final label, hidden ones too, oldest first.
    """
    found = list(readings_by_reader(versions).values())
    if len(found) < MIN_FOR_CONSENSUS:
        return []
    last = newest_consensus(versions)
    return [] if last is not None and is_made_from(last, found, versions) else found
