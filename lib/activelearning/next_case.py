"""Who contours what next: chosen by a strategy, and handed out in the same transaction.

The choice and the lease are one transaction of the database, which one client at a time can be in, on however
many servers: no case is given twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from lib.activelearning.pool import Choice, Pool
from lib.activelearning.score_cache import ScoreCache, TimedScore
from lib.activelearning.score_records import Kind
from lib.activelearning.scoring_jobs import Studies
from lib.activelearning.selection.catalogue import METHODS, Method, default_method
from lib.assignment import leases, reader_studies
from lib.assignment.readings import AssignmentState, assignment_state, may_lease
from lib.errors import DatastoreError
from lib.storage.database import Database
from lib.storage.tables import Lease, now

MOST_HELD = 5
"""Cases that one annotator may hold without submitting any: the next request gets the oldest again."""
_MAX_SEED = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """Who asks, and for what.

    Attributes:
        holder: The user, or the client's id; empty where nobody knows.
        seed: Of the choice; None draws one.
        readers: How many people are to contour the case; None where nobody said so.
    """

    holder: str
    seed: int | None = None
    readers: int | None = None


class CaseAssigner:
    """Chooses and leases cases.

    Args:
        database: The workflow's.
        known: What was computed.
        studies: Returns what there is.
        served: Returns the version that serves.
        lease_s: How long a lease holds.
    """

    def __init__(
        self,
        database: Database,
        *,
        known: ScoreCache,
        studies: Callable[[], Studies],
        served: Callable[[], str | None],
        lease_s: float,
    ) -> None:
        self._database = database
        self._known = known
        self._studies = studies
        self._served = served
        self._lease_s = lease_s

    def assign_next(self, strategy: str, asker: Annotator) -> dict[str, Any]:
        """Return the case to contour next, why it is that one, and until when it is the asker's.

        Without a case the answer has no `id`, and `why` says whether all are labelled, or with others.

        Args:
            strategy: One of `METHODS`. One that needs a model gives way to `coldstart` before the first one.
            asker: Who asks.

        Raises:
            DatastoreError: If there is no such strategy.
        """
        method, note = self._method(strategy)
        self._known.refresh()
        studies, served = self._studies(), self._served()
        scores, unreadable = self._known.scores(served), self._known.unreadable()
        seed = (
            int(np.random.default_rng().integers(_MAX_SEED)) if asker.seed is None else asker.seed
        )
        with self._database.writing() as session:
            moment = now()
            stand = assignment_state(session, moment)
            held = [one for one in leases.active(session, moment) if one.holder == asker.holder]
            if asker.holder and len(held) >= MOST_HELD:
                return _return_held_case(held[0], len(held))
            candidates = _candidates(studies, stand, asker, unreadable)
            pool = Pool(
                candidates=candidates,
                taken=[*studies.labelled, *sorted(stand.holding.keys() - studies.labelled.keys())],
                scores={image_id: dated.score for image_id, dated in scores.items()},
                shapes=self._known.shapes(studies.labelled) if Kind.DRAWN in method.needs else {},
                appearance=self._known.appearance() if Kind.APPEARANCE in method.needs else {},
                seed=seed,
            )
            choice = method.choose(pool)
            if choice is None:
                return _no_case_response(studies, stand, unreadable)
            why = {**asdict(choice), "organs": list(choice.organs)} | _provenance(
                choice, method, scores.get(choice.image_id), served, moment
            )
            if note:
                why["note"] = note
            if asker.readers is not None and asker.readers > 1:
                _open_study(session, choice.image_id, asker)
            lease = leases.grant(
                session, choice.image_id, asker.holder, for_s=self._lease_s, strategy=method.name, why=why,
                at=moment,
            )  # fmt: skip
            return {"id": choice.image_id, **why, "lease": _as_response(lease)}

    def _method(self, strategy: str) -> tuple[Method, str]:
        method = METHODS.get(strategy)
        if method is None:
            raise DatastoreError(
                f"{strategy[:80]!r}: no such strategy; there is {', '.join(METHODS)}"
            )
        has_model = self._served() is not None
        if not has_model and Kind.PREDICTION in method.needs:
            instead = METHODS[default_method(has_model)]
            return (
                instead,
                f"{method.name} needs a model, and none serves yet: {instead.name} chose",
            )
        return method, ""


def _candidates(
    studies: Studies, stand: AssignmentState, asker: Annotator, unreadable: Mapping[str, str]
) -> list[str]:
    """Return the images that the asker may be given now.

    Second readings go to who asks for one, and to others when nothing else is left.
    """

    def open_ones(image_ids: Sequence[str]) -> list[str]:
        return [
            i for i in image_ids
            if i not in unreadable
            and asker.holder not in stand.holding.get(i, ())
            and may_lease(asker.holder, i, stand)
        ]  # fmt: skip

    begun = {*studies.labelled, *stand.holding} & stand.wanted.keys()
    second = open_ones(sorted(begun))
    if asker.readers is not None and asker.readers > 1 and second:
        return second
    fresh = open_ones([i for i in studies.unlabelled if i not in begun])
    if asker.readers is not None and asker.readers > 1:
        return fresh
    return fresh or second


def _open_study(session: Session, image_id: str, asker: Annotator) -> None:
    wanted = max(asker.readers or 1, reader_studies.readers_of(session, image_id))
    reader_studies.set_readers(session, image_id, wanted, asker.holder)


def _provenance(
    choice: Choice, method: Method, dated: TimedScore | None, served: str | None, moment: datetime
) -> dict[str, Any]:
    """Return which strategy and which model are behind a choice, and how old what they rest on is."""
    said: dict[str, Any] = {"strategy": method.name, "model_version": served}
    if dated is None or Kind.PREDICTION not in method.needs or choice.rank is None:
        return said
    version = dated.score.model_version
    age_s = max(0.0, (moment - dated.at).total_seconds())
    said |= {"scored_by": version, "score_age_s": round(age_s), "is_stale": version != served}
    if version != served:
        said["note"] = f"its score is of an earlier model, {version}, {_age(age_s)} old"
    return said


def _return_held_case(lease: Lease, count: int) -> dict[str, Any]:
    why = (
        f"you hold {count} cases that are not submitted; this is the one that you have had longest. Submit it, "
        "or release it (DELETE /organnet/leases/IMAGE)"
    )
    return {"id": lease.image_id, **lease.why, "why": why, "lease": _as_response(lease)}


def _no_case_response(
    studies: Studies, stand: AssignmentState, unreadable: Mapping[str, str]
) -> dict[str, Any]:
    """Return why there is no case; both clients show an answer without `id` as "none left"."""
    away = [image_id for image_id in studies.unlabelled if stand.holding.get(image_id)]
    bad = sorted(set(unreadable) & set(studies.unlabelled))
    if away:
        why = (
            f"{len(away)} cases are not labelled yet, and others are contouring them: {_few(away)}"
        )
    elif not studies.unlabelled and not studies.labelled:
        why = "there are no images in the store"
    else:
        why = "all cases are labelled"
    if bad:
        why += f"; {len(bad)} cannot be read: {_few([f'{i} ({unreadable[i]})' for i in bad])}"
    is_done = not away
    return {"why": why, "is_all_labelled": is_done}


def _as_response(lease: Lease) -> dict[str, Any]:
    return {"holder": lease.holder, "until": lease.expires_at.isoformat(timespec="seconds")}


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _age(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
