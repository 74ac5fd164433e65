"""What was done to each case's label, and what the server said to it."""

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import nibabel as nib
import numpy as np


class Told(Enum):
    """What became of a request, as its client knows it."""

    ANSWERED = "answered"
    UNKNOWN = "no answer"
    LAID = "laid by hand, not seen in the history yet"


@dataclass(slots=True)
class Event:
    """One change of a case's label.

    Attributes:
        voxels: SHA-256 of the label's voxels; None for its removal.
        told: What its client knows.
    """

    voxels: str | None
    told: Told


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
        events: Everything that was done, in order.
        is_there: Whether the scan was accepted.
        seen: The history as it was last found; what was once in it stays.
    """

    image_id: str
    events: list[Event] = field(default_factory=list)
    is_there: bool = False
    seen: list[Version] = field(default_factory=list)

    @property
    def is_labelled(self) -> bool:
        """Whether there is a label, as far as anybody was told."""
        return bool(self.events) and self.events[-1].voxels is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a file that was laid by hand was not seen in the history yet."""
        return bool(self.events) and self.events[-1].told is Told.LAID

    def answered(self) -> list[str]:
        """Return the voxels of every label that was accepted, in order."""
        return [e.voxels for e in self.events if e.voxels and e.told is Told.ANSWERED]

    def possible(self) -> set[str | None]:
        """Return what may be current: the last event that was answered, or one after it."""
        tail: set[str | None] = set()
        for event in reversed(self.events):
            tail.add(event.voxels)
            if event.told is Told.ANSWERED:
                return tail
        return {*tail, None}

    def settle(self, history: list[Version], current: str | None) -> None:
        """Take what was found, and was checked, as what is known: no request is open any more."""
        self.seen = history
        self.events = [Event(version.voxels, Told.ANSWERED) for version in history]
        if current is None and history:
            self.events.append(Event(None, Told.ANSWERED))


def voxels_of(path: Path) -> str:
    """Return the SHA-256 of a label's voxels, as nibabel reads them."""
    image = nib.load(path)
    array = np.ascontiguousarray(np.asanyarray(image.dataobj).astype(np.uint8))  # type: ignore[attr-defined]
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()


def is_in_order(wanted: list[str], found: list[str]) -> bool:
    """Return whether `found` has all of `wanted`, in their order, among others."""
    rest = iter(found)
    return all(one in rest for one in wanted)
