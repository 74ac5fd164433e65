"""MONAI Label's strategies around `lib.activelearning.selection`."""

import secrets
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.pool import Pool
from lib.activelearning.selection.catalogue import METHODS, Method


class UnlabelledStrategy(Strategy):
    """Offers an image without a final label, chosen by a pure function of the ids (defect 16).

    A reply of `{}` says that all are labelled: both clients show that as "none left".
    """

    def __init__(self, method: Method) -> None:
        super().__init__(method.description)
        self._method = method

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Return the chosen image's id, or nothing where all are labelled."""
        seed = request.get("seed")
        pool = Pool(
            candidates=datastore.get_unlabeled_images(),
            seed=int(seed) if seed is not None else secrets.randbits(32),
        )
        choice = self._method.choose(pool)
        return {"id": choice.image_id} if choice is not None else {}


def strategies() -> dict[str, Strategy]:
    """Return every strategy by its name in `POST /activelearning/<name>`."""
    return {name: UnlabelledStrategy(METHODS[name]) for name in ("first", "random")}
