"""MONAI Label's strategies around `lib.activelearning.next_case`: one adapter for all of them."""

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.next_case import Annotator, CaseAssigner
from lib.activelearning.selection.catalogue import METHODS, Method, default_method


class AssigningStrategy(Strategy):
    """`POST /activelearning/<name>`: a case by one strategy, leased to who asked (defects 15 and 16)."""

    def __init__(self, method: Method, case_assigner: CaseAssigner) -> None:
        source = f" ({method.paper})" if method.paper else ""
        super().__init__(method.description + source)
        self._method = method
        self._handout = case_assigner

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:  # noqa: ARG002 - the base's
        """Return the case; without `id`, which both clients show as "none left", where there is none."""
        asker = Annotator(
            holder=str(request.get("holder") or ""),
            seed=request.get("seed"),
            readers=request.get("readers"),
        )
        return self._handout.assign_next(self._method.name, asker)


def strategies(case_assigner: CaseAssigner) -> dict[str, Strategy]:
    """Return every strategy by its name; the default comes first, as clients preselect that one."""
    default = default_method(has_model=True)
    names = [default, *(name for name in METHODS if name != default)]
    return {name: AssigningStrategy(METHODS[name], case_assigner) for name in names}
