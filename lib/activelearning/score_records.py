"""What was computed of images, by model and kind; read as a whole by those who choose."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from lib.storage.database import Database
from lib.storage.tables import Score


class Kind(str, Enum):
    """What is computed, the cheapest first."""

    APPEARANCE = "appearance"
    """Of the image alone; needs no model."""
    PREDICTION = "prediction"
    """Of one pass of the network: entropies, shapes, features."""
    SAMPLES = "samples"
    """Of several passes: how far they differ."""
    DRAWN = "drawn"
    """Of a person's label; its `model_version` is the label's SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """One row of `Score`, to be kept."""

    image_id: str
    model_version: str
    kind: Kind
    found: Mapping[str, Any]
    trouble: str | None = None
    seconds: float = 0.0


class Scores:
    """All that was computed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, computed: Computed) -> bool:
        """Keep it; return whether it was not there yet."""
        row = {
            "image_id": computed.image_id,
            "model_version": computed.model_version,
            "kind": computed.kind.value,
            "found": dict(computed.found),
            "trouble": computed.trouble,
            "seconds": computed.seconds,
        }
        with self._database.writing() as session:
            added = session.execute(
                insert(Score).values(**row).on_conflict_do_nothing().returning(Score.id)
            )
            return added.first() is not None

    def since(self, after_id: int) -> Iterator[Score]:
        """Yield the rows that were added after the one with that id, oldest first."""
        with self._database.reading() as session:
            yield from session.scalars(select(Score).where(Score.id > after_id).order_by(Score.id))
