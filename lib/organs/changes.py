"""Sentences about the differences between contours as they were sent and the label that is stored of them."""

from collections.abc import Iterable, Mapping, Sequence

_NAME_LENGTH = 80


def shown(name: str) -> str:
    """Return a structure's name for a message, in quotation marks and shortened."""
    return repr(name if len(name) <= _NAME_LENGTH else f"{name[:_NAME_LENGTH]}...")


def listed(names: Sequence[str]) -> str:
    """Return structures' names for a message, at most 20 of them."""
    first = ", ".join(shown(name) for name in names[:20])
    return first + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def renamed(organs: Mapping[str, str]) -> list[str]:
    """Return a sentence for each structure that is stored under another name: name -> organ."""
    return [
        f"{shown(name)} was stored as {organ}" for name, organ in organs.items() if name != organ
    ]


def dropped(names: Iterable[str], reason: str) -> list[str]:
    """Return a sentence for each structure that is not stored, with the reason."""
    return [f"{shown(name)} was not stored: {reason}" for name in names]


def moved(values: Mapping[int, tuple[str, int]]) -> list[str]:
    """Return a sentence about values that are stored as others: value -> organ and its value."""
    others = ", ".join(
        f"{value} as {stored} ({organ})"
        for value, (organ, stored) in sorted(values.items())
        if value != stored
    )
    return [f"the values were stored by their names: {others}"] if others else []


def overlapping(shared_vox: Mapping[str, int]) -> list[str]:
    """Return a sentence for each pair of organs that share voxels, as `combine_masks` returns them."""
    return [
        f"{pair} share {count} voxels, assigned to the smaller organ"
        for pair, count in shared_vox.items()
    ]
