"""Which cases any model here has learned from, by the cards that lie beside the weights."""

import json
from pathlib import Path


def trained_cases(*folders: Path | None) -> set[str]:
    """Return the ids of all cases that a model in one of the folders was trained on.

    A card that cannot be read says nothing, and neither does its model, which does not load.
    """
    found: set[str] = set()
    for folder in folders:
        for card in folder.glob("*.json") if folder else ():
            try:
                cases = json.loads(card.read_text(encoding="utf-8"))["training"]["cases"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found |= {str(case) for case in cases} if isinstance(cases, list) else set()
    return found
