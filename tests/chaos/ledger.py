"""Records of what was done to the label of each case, and how the server answered."""

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import nibabel as nib
import numpy as np


class RequestOutcome(Enum):
    """Outcome of a change, as its client knows it."""

    ANSWERED = "answered"
    UNKNOWN = "no answer"
    COPIED_IN = "copied in by hand, not yet seen in the history"


@dataclass(slots=True)
class Event:
    """One change of a case's label.

    Attributes:
        voxels: SHA-256 of the label's voxels; None for a removal.
        outcome: What its client knows of it.
    """

    voxels: str | None
    outcome: RequestOutcome


@dataclass(frozen=True, slots=True)
class Version:
    """A version as the server's history lists it."""

    number: int
    sha256: str
    voxels: str
    is_hidden: bool


@dataclass(slots=True)
class CaseLedger:
    """The label of one case, through all rounds.

    Attributes:
        events: All changes, in order.
        is_there: Whether the scan was accepted.
        seen: The history at the last check; its entries must never change.
    """

    image_id: str
    events: list[Event] = field(default_factory=list)
    is_there: bool = False
    seen: list[Version] = field(default_factory=list)

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label, according to the last event."""
        return bool(self.events) and self.events[-1].voxels is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a file that was copied in by hand has not been seen in the history yet."""
        return bool(self.events) and self.events[-1].outcome is RequestOutcome.COPIED_IN

    def answered(self) -> list[str]:
        """Return the voxels of every label that was accepted, in order."""
        return [e.voxels for e in self.events if e.voxels and e.outcome is RequestOutcome.ANSWERED]

    def possible(self) -> set[str | None]:
        """Return the voxels that may be current: those of the last answered event or of a later one."""
        tail: set[str | None] = set()
        for event in reversed(self.events):
            tail.add(event.voxels)
            if event.outcome is RequestOutcome.ANSWERED:
                return tail
        return {*tail, None}

    def resolve(self, history: list[Version], current: str | None) -> None:
        """Replace the events by the checked history: no request is open any more."""
        self.seen = history
        self.events = [Event(version.voxels, RequestOutcome.ANSWERED) for version in history]
        if current is None and history:
            self.events.append(Event(None, RequestOutcome.ANSWERED))


def voxels_of(path: Path) -> str:
    """Return the SHA-256 of a label's voxels, as nibabel reads them."""
    image = nib.load(path)
    array = np.ascontiguousarray(np.asanyarray(image.dataobj).astype(np.uint8))  # type: ignore[attr-defined]
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def is_in_order(wanted: list[str], recorded: list[str]) -> bool:
    """Return whether `recorded` contains all of `wanted` in their order, with others in between."""
    remaining = iter(recorded)
    return all(item in remaining for item in wanted)
