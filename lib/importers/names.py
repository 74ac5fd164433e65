"""Names of structures in a source -> TG-263 names, by our table and the user's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.errors import ConfigError, LabelError
from lib.organs.naming import organ_of_structure
from lib.organs.table import ORGANS, organ_set

IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What became of the names in one case.

    Attributes:
        organs: Name in the source -> TG-263 name of an organ of the set.
        outside_set: Names of organs that we know but the set does not have.
        ignored: Names that the user's table says to ignore.
        unmapped: Names that nobody knows.
    """

    organs: Mapping[str, str]
    outside_set: Sequence[str]
    ignored: Sequence[str]
    unmapped: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganNames:
    """How names are understood: the user's table first, by small letters, then ours.

    Attributes:
        organ_set: The set whose organs are imported.
        table: Name in small letters -> TG-263 name, or `ignore`.
    """

    organ_set: str
    table: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Mapping[str, int]:
        """TG-263 name -> label value."""
        return organ_set(self.organ_set)

    def sort(self, names: Sequence[str], image_id: str) -> Naming:
        """Return what each of `names` is.

        Raises:
            LabelError: If two names mean one organ of the set: nobody knows which one is right.
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
        return Naming(
            organs={n: str(m) for n, m in organs.items()},
            outside_set=[n for n, m in meanings.items() if m in ORGANS and m not in self.labels],
            ignored=[n for n, m in meanings.items() if m == IGNORE],
            unmapped=[n for n, m in meanings.items() if m is None],
        )

    def _meaning(self, name: str) -> str | None:
        told = self.table.get(_key(name))
        if told is not None:
            return told
        return organ_of_structure(name)


def read_names(path: Path) -> dict[str, str]:
    """Return the user's table: names in small letters -> TG-263 names, or `ignore`.

    Raises:
        ConfigError: If the file is no such table.
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
        if table.setdefault(_key(str(name)), meaning) != meaning:
            raise ConfigError(f"--names {path}: {name!r} is there with two meanings")
    return table


def _key(name: str) -> str:
    return " ".join(name.lower().split())
