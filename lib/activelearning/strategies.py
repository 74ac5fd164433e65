"""MONAI Label's strategies around `lib.activelearning.selection`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning import selection


class UnlabelledStrategy(Strategy):
    """Offers an image without a final label, chosen by a pure function of the ids (defect 16).

    A reply of `{}` says that all are labelled: both clients show that as "none left".
    """

    def __init__(
        self, description: str, choose: Callable[[Sequence[str], int | None], str | None]
    ) -> None:
        super().__init__(description)
        self._choose = choose

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Return the chosen image's id, or nothing where all are labelled."""
        unlabelled = datastore.get_unlabeled_images()
        seed = request.get("seed")
        chosen = self._choose(unlabelled, int(seed) if seed is not None else None)
        return {"id": chosen} if chosen is not None else {}


def strategies() -> dict[str, Strategy]:
    """Return every strategy by its name in `POST /activelearning/<name>`."""
    return {
        "first": UnlabelledStrategy(
            "First unlabelled image by name", lambda ids, _seed: selection.first(ids)
        ),
        "random": UnlabelledStrategy("Any unlabelled image", selection.random_choice),
    }
