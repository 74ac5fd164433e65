"""MONAI Label's active-learning strategies: one adapter for all strategies of `lib.activelearning`."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.case_assigner import Annotator, CaseAssigner, NextCase
from lib.activelearning.selection.catalogue import METHODS, Method, default_method


class AssigningStrategy(Strategy):
    """Assigns cases by one strategy (`POST /activelearning/NAME`, defects 15 and 16)."""

    def __init__(self, method: Method, case_assigner: CaseAssigner) -> None:
        source = f" ({method.paper})" if method.paper else ""
        super().__init__(method.description + source)
        self._method = method
        self._case_assigner = case_assigner

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> NextCase:  # noqa: ARG002 - base class
        """Return the case; without `id` if there is none, which both clients show as "none left"."""
        annotator = Annotator(
            holder=str(request.get("holder") or ""),
            seed=request.get("seed"),
            readers=request.get("readers"),
        )
        return self._case_assigner.assign_next(self._method.name, annotator)


def strategies(case_assigner: CaseAssigner) -> dict[str, Strategy]:
    """Return every strategy by name; clients preselect the first one, which is the default."""
    default = default_method(has_model=True)
    names = [default, *(name for name in METHODS if name != default)]
    return {name: AssigningStrategy(METHODS[name], case_assigner) for name in names}
