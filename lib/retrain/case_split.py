"""Which cases are trained on and which judge the models: decided once per case, for ever."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from lib.retrain.case_set_records import REFEREE, TRAIN, CaseSetName
from lib.training.cases import HELD_OUT_OF, is_held_out

MIN_REFEREE = 2
SPARE = 3
"""So many judges more than their share are accepted before hashes are overruled."""


DOUBTED, SEEN = "its first label looked wrong", "a model has seen it before"


@dataclass(frozen=True, slots=True)
class CaseHistory:
    """A case that was put into a set before.

    Attributes:
        set: The one it is in.
        organs: TG-263 names contoured in it.
    """

    set: CaseSetName
    organs: Set[str]


def choose_set(
    image_id: str,
    organs: Set[str],
    known: Mapping[str, CaseHistory],
    *,
    trained_on: Set[str] = frozenset(),
    is_doubted: bool = False,
) -> tuple[CaseSetName, str]:
    """Return the set of a case that has its first label, and why.

    The first cases of all judge, so that there is a referee before there is a candidate. After that the hash of
    the id decides, the same on every machine, unless an organ would have no judge at all, or the referee is
    larger than its share already.

    Args:
        image_id: The case.
        organs: Contoured in it.
        known: The cases that are in a set.
        trained_on: Cases that some model here has been trained on: none of them may ever judge.
        is_doubted: Whether its label looks wrong: whoever judges must be right.
    """
    judges = [case for case in known.values() if case.set == REFEREE]
    total = len(known) + 1
    if image_id in trained_on or is_doubted:
        return TRAIN, DOUBTED if is_doubted else SEEN
    if len(judges) < MIN_REFEREE:
        return REFEREE, f"the first {MIN_REFEREE} cases judge"
    unjudged = sorted(_unjudged(organs, known))
    if unjudged:
        return REFEREE, f"no case judged {unjudged[0]}"
    if len(judges) + 1 > total / HELD_OUT_OF + SPARE:
        return TRAIN, "enough cases judge"
    return (REFEREE if is_held_out(image_id) else TRAIN), "by the hash of its id"


def _unjudged(organs: Set[str], known: Mapping[str, CaseHistory]) -> set[str]:
    """Return those of `organs` that enough cases to train on have, and no judge."""
    judged = {o for case in known.values() if case.set == REFEREE for o in case.organs}
    trained = [o for case in known.values() if case.set == TRAIN for o in case.organs]
    return {o for o in organs - judged if trained.count(o) >= MIN_REFEREE}
