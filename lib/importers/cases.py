"""Cases that an import source offers, and the mapping of their structure names to TG-263 names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.errors import ConfigError, LabelError
from lib.imaging.quantities import MaskArray
from lib.imaging.volumes import CtVolume
from lib.organs.naming import tg263_name
from lib.organs.table import ORGANS, organ_set

IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMapping:
    """The structure names of one case, by their meaning.

    Attributes:
        organs: Name in the source -> TG-263 name of an organ of the set.
        outside_set: Names of known organs that the set does not have.
        ignored: Names that the user's table says to ignore.
        unmapped: Unknown names.
    """

    organs: Mapping[str, str]
    outside_set: Sequence[str]
    ignored: Sequence[str]
    unmapped: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganNames:
    """Rules that map structure names to organs: the user's table first (any case), then `lib.organs.naming`.

    Attributes:
        organ_set: The set whose organs are imported.
        table: Name in lower case -> TG-263 name, or `ignore`.
    """

    organ_set: str
    table: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Mapping[str, int]:
        """TG-263 name -> label value."""
        return organ_set(self.organ_set)

    def classify(self, names: Sequence[str], image_id: str) -> NameMapping:
        """Return the meaning of each of `names`.

        Raises:
            LabelError: If two names mean one organ of the set, as it is unknown which is right.
        """
        meanings = {name: self._meaning(name) for name in names}
        organs = {n: m for n, m in meanings.items() if m in self.labels}
        for organ in organs.values():
            same = [name for name, meaning in organs.items() if meaning == organ]
            if len(same) > 1:
                raise LabelError(
                    f"{image_id}: {' and '.join(map(repr, same))} both mean {organ}; say with --names which "
                    f"of them to {IGNORE}"
                )
        return NameMapping(
            organs={n: str(m) for n, m in organs.items()},
            outside_set=[n for n, m in meanings.items() if m in ORGANS and m not in self.labels],
            ignored=[n for n, m in meanings.items() if m == IGNORE],
            unmapped=[n for n, m in meanings.items() if m is None],
        )

    def _meaning(self, name: str) -> str | None:
        return self.table.get(_table_key(name)) or tg263_name(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContouredScan:
    """A CT with the masks of its organs.

    Attributes:
        ct: The scan.
        masks: TG-263 name -> `(X, Y, Z)` on the scan's grid, not all false; organs of the set only.
        naming: The meaning of the names in the source.
        notes: Remarks for the user, one sentence each.
    """

    ct: CtVolume
    masks: Mapping[str, MaskArray]
    naming: NameMapping
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCase:
    """One case that a source offers.

    Attributes:
        source: Name of the source.
        case_id: Image id after the import: the name of a folder or file, never of a patient.
        location: Path of the case; shown to the user, never stored.
        inputs: Files that the case is read from; if one changes, the case is imported again.
        read: Reads the case; None if it has no contours.
    """

    source: str
    case_id: str
    location: Path
    inputs: Sequence[Path]
    read: Callable[[OrganNames], ContouredScan] | None


def read_names(path: Path) -> dict[str, str]:
    """Return the user's table: names in lower case -> TG-263 names, or `ignore`.

    Raises:
        ConfigError: If the file is not such a table.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--names {path}: cannot be read as YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"--names {path}: lines such as 'Rt Parotid: Parotid_R' or 'PTV70: {IGNORE}' expected"
        )
    table: dict[str, str] = {}
    for name, meaning in content.items():
        if not isinstance(meaning, str) or (meaning != IGNORE and meaning not in ORGANS):
            raise ConfigError(
                f"--names {path}: {name!r} means {meaning!r}; {IGNORE!r} or one of {', '.join(ORGANS)} expected"
            )
        if table.setdefault(_table_key(str(name)), meaning) != meaning:
            raise ConfigError(f"--names {path}: {name!r} has two meanings; keep one line")
    return table


def _table_key(name: str) -> str:
    return " ".join(name.lower().split())
