"""The labelled cases of a store, as trainings know them."""

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from monailabel.interfaces.datastore import Datastore

from lib.datastores.local import FINAL, FolderStore
from lib.errors import DatastoreError
from lib.retrain.plan import LabelledCase
from lib.state.labels import LabelHistory


def labelled_cases(
    store: Datastore, history: LabelHistory | None
) -> Callable[[], Sequence[LabelledCase]]:
    """Return what lists the cases with a final label: versions that never change, where there is a history."""
    if isinstance(store, FolderStore) and history is not None:
        return lambda: _from_history(store, history)
    return lambda: _from_files(store)


def _from_history(store: FolderStore, history: LabelHistory) -> list[LabelledCase]:
    found = []
    for version in history.current(FINAL):
        try:
            image = store.require_image(version.image_id)
        except DatastoreError:
            # The scan was taken out of the folder; its contours are kept until it comes back.
            continue
        case = LabelledCase(
            image_id=version.image_id,
            image=image,
            label=history.path(version.digest),
            digest=version.digest,
            number=version.number,
            organs=frozenset(version.organs),
            doubts=tuple(version.doubts),
            submitted_at=version.submitted_at,
        )
        found.append(case)
    return found


def _from_files(store: Datastore) -> list[LabelledCase]:
    found = []
    for pair in store.datalist():
        label = Path(pair["label"])
        modified = datetime.fromtimestamp(label.stat().st_mtime, timezone.utc)
        digest = hashlib.sha256(label.read_bytes()).hexdigest()
        case = LabelledCase(
            image_id=pair.get("id") or Path(pair["image"]).name,
            image=Path(pair["image"]),
            label=label,
            digest=digest,
            number=1,
            organs=frozenset(),
            submitted_at=modified,
        )
        found.append(case)
    return found
