"""Assignment of the next case: chosen by a query strategy, and leased to the annotator.

The choice and the lease are made in one write transaction of the database. Only one process can hold a write
transaction at a time, even with several servers, so no case is assigned twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, cast

import numpy as np

from lib.activelearning.pool import Choice, Pool, ScoreKind
from lib.activelearning.scores import ScoreCache, TimedScore
from lib.activelearning.scoring_jobs import Studies
from lib.activelearning.selection.catalogue import METHODS, Method, default_method
from lib.assignment import leases, reader_studies
from lib.assignment.leases import AssignmentState, assignment_state, may_lease
from lib.assignment.unsuitable_images import unsuitable_images
from lib.errors import DatastoreError
from lib.storage.database import Database
from lib.storage.tables import Lease, now

MOST_HELD = 5
"""Largest number of unsubmitted cases per annotator; beyond it a request returns the oldest of them again."""
_MAX_SEED = 2**32


class LeaseSummary(TypedDict):
    """Holder and end of a lease."""

    holder: str
    until: str
    """ISO 8601."""


class NextCase(TypedDict, total=False):
    """The next case as clients get it, with its choice, score and lease; only `why` is always present."""

    id: str
    """The image; missing if there is no case."""
    image_id: str
    """The image, as in the choice."""
    why: str
    """Reason for the choice, or why there is no case."""
    is_all_labelled: bool
    """Present if there is no case."""
    strategy: str
    rank: int | None
    of: int
    score: float | None
    organs: list[str]
    model_version: str | None
    scored_by: str
    score_age_s: int
    is_stale: bool
    note: str
    lease: LeaseSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """The requesting annotator, and the options of the request."""

    holder: str
    """Name of the user, or id of the client; empty if unknown."""
    seed: int | None = None
    """Random seed of the choice; None draws one."""
    readers: int | None = None
    """Number of readers who contour the case independently; None if not given."""

    @property
    def wants_reader_study(self) -> bool:
        """Whether several readers were requested."""
        return self.readers is not None and self.readers > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """Images that are not assigned to an annotator, with the reason."""

    unreadable: Mapping[str, str]
    """Image id -> error message."""
    unsuitable: Mapping[str, str]
    """Image id -> reason of the user who marked it."""
    skipped: Mapping[str, datetime]
    """Image id -> time until which the annotator does not get it again."""

    @property
    def images(self) -> set[str]:
        """Ids of all these images."""
        return {*self.unreadable, *self.unsuitable, *self.skipped}


@dataclass(frozen=True, slots=True)
class CaseAssigner:
    """Chooses and leases cases."""

    database: Database
    scores: ScoreCache
    studies: Callable[[], Studies]
    """Returns all images, unlabelled and labelled."""
    served: Callable[[], str | None]
    """Returns the version of the active model."""
    lease_s: float
    """Duration of a lease, in s."""

    def assign_next(self, strategy: str, annotator: Annotator) -> NextCase:
        """Return the next case, the reason for its choice, and its lease.

        If there is no case, the answer has no `id`, and `why` says whether all are labelled or assigned to
        others.

        Args:
            strategy: One of `METHODS`. If there is no model, `coldstart` replaces a strategy that needs one.
            annotator: The requesting annotator.

        Raises:
            DatastoreError: If there is no such strategy.
        """
        method, note = self._method(strategy)
        self.scores.refresh()
        served = self.served()
        scores, unreadable = self.scores.scores(served), self.scores.unreadable()
        seed = annotator.seed
        if seed is None:
            seed = int(np.random.default_rng().integers(_MAX_SEED))
        with self.database.writing() as session:
            moment = now()
            active = leases.active(session, moment)
            # Read within the transaction, which has begun: no label can be added before the lease.
            studies = self.studies()
            # An unlabelled image has no submission, unless the file of its label is missing.
            without_file = [i for i in studies.unlabelled if i in studies.labelled]
            state = assignment_state(session, moment, submitted_of=without_file)
            held = [lease for lease in active if lease.holder == annotator.holder]
            if annotator.holder and len(held) >= MOST_HELD:
                return _return_held_case(held[0], len(held))
            taken = [*studies.labelled, *sorted(state.holding.keys() - studies.labelled.keys())]
            withheld = Withheld(
                unreadable=unreadable,
                unsuitable={i: row.reason for i, row in unsuitable_images(session).items()},
                skipped=leases.skipped_by(session, annotator.holder, moment),
            )
            candidates = _candidates(studies, state, annotator, withheld.images)
            pool = self._pool(
                method,
                candidates,
                taken,
                labelled=studies.labelled,
                scores=scores,
                seed=seed,
            )
            choice = method.choose(pool)
            if choice is None:
                return _no_case_response(studies, state, withheld)
            why = choice.as_dict() | _provenance(
                choice, method, scores.get(choice.image_id), served, moment
            )
            if note:
                why["note"] = note
            if annotator.wants_reader_study:
                recorded = reader_studies.readers_of(session, choice.image_id)
                wanted = max(annotator.readers or 1, recorded)
                reader_studies.set_readers(session, choice.image_id, wanted, annotator.holder)
            lease = leases.grant(
                session, choice.image_id, annotator.holder, for_s=self.lease_s, strategy=method.name, why=why,
                at=moment,
            )  # fmt: skip
            return cast("NextCase", {"id": choice.image_id, **why, "lease": _lease_as_dict(lease)})

    def _pool(
        self,
        method: Method,
        candidates: Sequence[str],
        taken: Sequence[str],
        *,
        labelled: Mapping[str, str],
        scores: Mapping[str, TimedScore],
        seed: int,
    ) -> Pool:
        """Return what a strategy chooses from: all images, or a random sample of as many as it can compare.

        Args:
            method: The strategy.
            candidates: Images that may be assigned now.
            taken: Images that are labelled or being contoured.
            labelled: Image id -> SHA-256 of its final label.
            scores: Image id -> score.
            seed: Seed of the sample and of the choice.
        """
        images: Iterable[str] = scores
        if method.most_images is not None and len(candidates) + len(taken) > method.most_images:
            generator = np.random.default_rng(seed)
            candidates = _sample(candidates, method.most_images, generator)
            taken = _sample(taken, method.most_images, generator)
            images = [i for i in (*candidates, *taken) if i in scores]
        has_shapes = ScoreKind.LABEL_SHAPES in method.needs
        digests = {i: labelled[i] for i in taken if has_shapes and i in labelled}
        return Pool(
            candidates=candidates,
            taken=taken,
            scores={image_id: scores[image_id].score for image_id in images},
            shapes=self.scores.shapes(digests),
            appearance=self.scores.appearance(),
            seed=seed,
        )

    def _method(self, strategy: str) -> tuple[Method, str]:
        method = METHODS.get(strategy)
        if method is None:
            raise DatastoreError(
                f"{strategy[:80]!r}: unknown strategy; expected one of {', '.join(METHODS)}"
            )
        has_model = self.served() is not None
        if not has_model and ScoreKind.PREDICTION in method.needs:
            fallback = METHODS[default_method(has_model)]
            note = f"{method.name} needs a model, and there is none yet: {fallback.name} was used instead"
            return fallback, note
        return method, ""


def _sample(names: Sequence[str], number: int, generator: np.random.Generator) -> list[str]:
    """Return `number` random names, or all if there are fewer, in their order."""
    if len(names) <= number:
        return list(names)
    return [names[k] for k in np.sort(generator.choice(len(names), number, replace=False))]


def _candidates(
    studies: Studies, state: AssignmentState, annotator: Annotator, withheld: Set[str]
) -> list[str]:
    """Return the images that may be assigned to the annotator now; none of `withheld`.

    Reader-study cases that another reader has begun are offered first to annotators who request several
    readers. Other annotators get them only if no other case is left.
    """

    def assignable(image_ids: Sequence[str]) -> list[str]:
        return [
            i for i in image_ids
            if i not in withheld
            and annotator.holder not in state.holding.get(i, ())
            and may_lease(annotator.holder, i, state)
        ]  # fmt: skip

    begun = {i for i in state.wanted if i in studies.labelled or i in state.holding}
    further_readings = assignable(sorted(begun))
    if annotator.wants_reader_study and further_readings:
        return further_readings
    # Nothing is known about most images, and these can be assigned: only the others are looked at one by one.
    special = {*begun, *withheld, *state.holding, *state.submitted, *state.wanted}
    allowed = set(assignable([i for i in studies.unlabelled if i in special and i not in begun]))
    rest = [i for i in studies.unlabelled if i not in special or i in allowed]
    return rest or further_readings


def _provenance(
    choice: Choice, method: Method, timed: TimedScore | None, served: str | None, moment: datetime
) -> dict[str, Any]:
    """Return the strategy and the model behind a choice, and the age of the score that it is based on."""
    provenance: dict[str, Any] = {"strategy": method.name, "model_version": served}
    if timed is None or ScoreKind.PREDICTION not in method.needs or choice.rank is None:
        return provenance
    version = timed.score.model_version
    age_s = max(0.0, (moment - timed.at).total_seconds())
    provenance |= {"scored_by": version, "score_age_s": round(age_s), "is_stale": version != served}
    if version != served:
        provenance["note"] = f"its score is by an earlier model, {version}, and {_age(age_s)} old"
    return provenance


def _return_held_case(lease: Lease, count: int) -> NextCase:
    why = (
        f"{count} cases are assigned to you and not submitted; this is the oldest of them. Submit it, or "
        "release it (DELETE /organnet/leases/IMAGE)"
    )
    held = {"id": lease.image_id, **lease.why, "why": why, "lease": _lease_as_dict(lease)}
    return cast("NextCase", held)


def _no_case_response(studies: Studies, state: AssignmentState, withheld: Withheld) -> NextCase:
    """Return why there is no case; OHIF and Slicer show an answer without `id` as "none left"."""
    unlabelled = set(studies.unlabelled)
    assigned = [image_id for image_id in studies.unlabelled if state.holding.get(image_id)]
    broken = sorted(unlabelled & withheld.unreadable.keys())
    unsuitable = sorted(unlabelled & withheld.unsuitable.keys())
    skipped = sorted(unlabelled & withheld.skipped.keys() - withheld.unsuitable.keys())
    if assigned:
        why = f"{len(assigned)} cases are not labelled yet, and others are contouring them: {_few(assigned)}"
    elif not studies.unlabelled and not studies.labelled:
        why = "there are no images in the store"
    elif skipped:
        why = "no other case is left"
    else:
        why = "all cases are labelled"
    if skipped:
        until = min(withheld.skipped[image_id] for image_id in skipped)
        why += (
            f"; you skipped {len(skipped)}: {_few(skipped)}; the first is offered to you again at "
            f"{until:%Y-%m-%d %H:%M UTC}"
        )
    if unsuitable:
        names = _few([f"{i} ({withheld.unsuitable[i]})" for i in unsuitable])
        why += f"; {len(unsuitable)} are marked as unsuitable: {names}"
    if broken:
        names = _few([f"{i} ({withheld.unreadable[i]})" for i in broken])
        why += f"; {len(broken)} cannot be read: {names}"
    return {"why": why, "is_all_labelled": not assigned and not skipped}


def _lease_as_dict(lease: Lease) -> LeaseSummary:
    return {"holder": lease.holder, "until": lease.expires_at.isoformat(timespec="seconds")}


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _age(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
