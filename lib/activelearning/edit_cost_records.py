"""What people changed of predictions before they submitted: one row for each submitted label, never changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from lib.evaluation.edit_cost import EditCosts
from lib.labels.history import FINAL
from lib.storage.database import Database
from lib.storage.tables import EditCost, LabelVersion

PEOPLE = ("client", "folder")
"""Sources of labels that a person submitted now: `infer` is a model's, `restore` somebody's of another day."""

_Query = Select[LabelVersion, EditCost]
_JOINED: _Query = select(LabelVersion, EditCost).join(
    EditCost, EditCost.label_version_id == LabelVersion.id
)
_COLUMNS = tuple(EditCost.__table__.columns.keys())


@dataclass(frozen=True, slots=True)
class Edited:
    """A submitted label, and what of the prediction was changed to make it."""

    label: LabelVersion
    cost: EditCost


class EditCostRecords:
    """The edit costs of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(
        self,
        label: LabelVersion,
        costs: EditCosts | None,
        *,
        was_trained_on: bool,
        trouble: str | None = None,
    ) -> bool:
        """Keep what was measured; return whether there was no row of that label yet.

        Args:
            label: What was submitted; one that `due` returned.
            costs: What was found; None where it failed.
            was_trained_on: Whether the model had learned from this case before.
            trouble: Why it failed; it is not tried again.
        """
        row = {
            "label_version_id": label.id,
            "model_version": label.model_version,
            "was_trained_on": was_trained_on,
            "found": costs.as_dict() if costs else {},
            "mean_dsc": costs.mean_dsc if costs else None,
            "added_path_mm": costs.added_path_mm if costs else None,
            "changed_voxels": costs.changed_voxels if costs else None,
            "trouble": trouble,
        }
        with self._database.writing() as session:
            return _add(session, row)

    def due(self, limit: int) -> list[LabelVersion]:
        """Return at most `limit` submissions that were not measured yet, the newest first.

        These are people's final labels that are not hidden and whose model is known: each version of an image
        counts, since each was submitted against a prediction.
        """
        query = (
            select(LabelVersion)
            .outerjoin(EditCost, EditCost.label_version_id == LabelVersion.id)
            .where(
                EditCost.label_version_id.is_(None),
                LabelVersion.tag == FINAL,
                LabelVersion.source.in_(PEOPLE),
                LabelVersion.hidden_at.is_(None),
                # An empty name is no name.
                LabelVersion.model_version.is_not(None),
                LabelVersion.model_version != "",
            )
            .order_by(LabelVersion.submitted_at.desc(), LabelVersion.id.desc())
            .limit(limit)
        )
        with self._database.reading() as session:
            return list(session.scalars(query))

    def latest(self, limit: int) -> list[Edited]:
        """Return the rows of at most `limit` submissions, the newest first; hidden labels are left out."""
        newest = (LabelVersion.submitted_at.desc(), LabelVersion.id.desc())
        return self._edited(_JOINED.order_by(*newest).limit(limit))

    def curve(self) -> list[Edited]:
        """Return every row in the order of submission; hidden labels are left out."""
        return self._edited(_JOINED.order_by(LabelVersion.submitted_at, LabelVersion.id))

    def merge(self, there: Database) -> int:
        """Add the rows of another database whose labels are here and have none; return how many.

        A label is found by image, tag, moment and content: its id is another one in each database.
        """
        with there.reading() as session:
            found = list(session.execute(_JOINED))
        added = 0
        with self._database.writing() as session:
            ids = {_name(label): label.id for label in session.scalars(select(LabelVersion))}
            for label, cost in found:
                if _name(label) in ids:
                    row = {column: getattr(cost, column) for column in _COLUMNS}
                    added += _add(session, {**row, "label_version_id": ids[_name(label)]})
        return added

    def _edited(self, query: _Query) -> list[Edited]:
        visible = query.where(LabelVersion.hidden_at.is_(None))
        with self._database.reading() as session:
            return [Edited(label, cost) for label, cost in session.execute(visible)]


def _add(session: Session, row: Mapping[str, Any]) -> bool:
    """Add a row unless its label has one; return whether it was added."""
    add = insert(EditCost).values(**row).on_conflict_do_nothing()
    return session.execute(add.returning(EditCost.label_version_id)).first() is not None


def _name(label: LabelVersion) -> tuple[str, str, datetime, str]:
    return label.image_id, label.tag, label.submitted_at, label.digest
