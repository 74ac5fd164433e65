"""What a source offers, and what comes of reading it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.imaging.quantities import MaskArray
from lib.imaging.volumes import CtVolume
from lib.importers.names import Naming, OrganNames


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A CT with the masks of its organs.

    Attributes:
        ct: The scan.
        masks: TG-263 name -> `(X, Y, Z)` on the scan's grid, not all false; organs of the set only.
        naming: What became of the names in the source.
        notes: What the person who imports should know; one sentence each.
    """

    ct: CtVolume
    masks: Mapping[str, MaskArray]
    naming: Naming
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One case that a source offers.

    Attributes:
        source: Name of the source.
        case_id: What it is to be called: a folder's or a file's name, never a patient's.
        place: Where it lies; shown to the person who imports, never written down.
        inputs: The files it is read from; a change of one makes it another case.
        read: Reads it; None where it has no contours.
    """

    source: str
    case_id: str
    place: Path
    inputs: Sequence[Path]
    read: Callable[[OrganNames], Drawing] | None
