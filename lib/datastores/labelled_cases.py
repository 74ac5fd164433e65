"""The labelled cases of a store, as trainings know them."""

from collections.abc import Callable, Sequence

from lib.datastores.local import FolderStore
from lib.errors import DatastoreError
from lib.labels.history import FINAL
from lib.retrain.training_set import LabelledCase


def labelled_cases(store: FolderStore) -> Callable[[], Sequence[LabelledCase]]:
    """Return what lists the cases with a final label, by versions that never change."""
    return lambda: _labelled(store)


def _labelled(store: FolderStore) -> list[LabelledCase]:
    found = []
    for version in store.history.current(FINAL):
        try:
            image = store.image_location(version.image_id)
        except DatastoreError:
            # The scan was taken out of the folder; its contours are kept until it comes back.
            continue
        if not store.is_available(version.image_id):
            # It is on its way from the PACS.
            continue
        case = LabelledCase(
            image_id=version.image_id,
            image=image,
            label=store.history.path(version.digest),
            digest=version.digest,
            number=version.number,
            organs=frozenset(version.organs),
            doubts=tuple(version.doubts),
            submitted_at=version.submitted_at,
        )
        found.append(case)
    return found
