"""Routes to assignment: the next case, leases and reader studies."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from monailabel.endpoints.user.auth import User
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lib.assignment.leases import SKIPPED_FOR
from lib.assignment.reader_studies import (
    MAX_READERS,
    is_made_from,
    newest_consensus,
    reading_numbers,
    readings_by_reader,
)
from lib.errors import ConfigError
from lib.labels.history import CONSENSUS, FINAL
from lib.server.access import (
    ADMIN,
    ANNOTATOR,
    ANNOTATOR_OR_REVIEWER,
    KNOWN_IMAGE,
    REVIEWER,
    USER,
    author_of,
    holder_of,
    image_info,
    may_review,
)
from lib.server.bodies import StrictRoute
from lib.server.requests import (
    CLIENT_ID,
    ClientId,
    ClientOptions,
    OptionalSeed,
    as_number,
    number_between,
    require_object,
)
from lib.server.responses import ERRORS, IsoTime, RowAnswer
from lib.server.running_app import get_app
from lib.storage.identifiers import require_image_id
from lib.storage.tables import LabelVersion, ReaderStudy, UnsuitableImage, now
from lib.storage.tables import Lease as LeaseRow

MAX_MINUTES = 7 * 24 * 60.0
"""Longest lease, in minutes."""

router = APIRouter(responses=ERRORS, route_class=StrictRoute)


class StrategyOptions(ClientOptions):
    """Options of a request for the next case.

    Equal seeds choose the same case from the same candidates. `readers` above 1 asks for a case that several
    readers contour.
    """

    client_id: ClientId = CLIENT_ID
    seed: OptionalSeed = None
    readers: Annotated[int | None, number_between(1, MAX_READERS, is_whole=True)] = None


class LeaseUntil(BaseModel):
    """Holder and end of the lease that was granted with a case."""

    holder: str
    until: str


class NextSample(BaseModel):
    """The case to contour next, and why it was chosen.

    Without a case there is no `id`; then `why` is the reason, and `is_all_labelled` says whether every case is
    labelled. Further keys are the information about the image.
    """

    model_config = ConfigDict(extra="allow")
    id: str = ""
    why: str
    is_all_labelled: bool = False
    strategy: str = ""
    model_version: str | None = None
    score: float | None = None
    rank: int | None = None
    of: int = 0
    organs: list[str] = []
    scored_by: str = ""
    score_age_s: int = 0
    is_stale: bool = False
    note: str = ""
    lease: LeaseUntil | None = None


class LeaseOptions(ClientOptions):
    """Options of a lease; without `minutes` it lasts as long as the server's setting `lease_minutes`."""

    minutes: Annotated[float | None, number_between(0.01, MAX_MINUTES)] = None
    client_id: ClientId = CLIENT_ID


class Lease(RowAnswer):
    """A lease of a case; nothing in it reveals another reader's contours."""

    image: str = Field(validation_alias="image_id")
    holder: str
    strategy: str
    why: dict[str, Any]
    since: IsoTime = Field(validation_alias="granted_at")
    until: IsoTime = Field(validation_alias="expires_at")
    ended_at: IsoTime | None
    ended_by: str | None


class SkippedLease(Lease):
    """A lease that ended because its holder skipped the case, and the time from which it is offered again."""

    offered_again_at: str


class UnsuitableOptions(BaseModel):
    """Why an image is not worth contouring: 1 to 500 characters."""

    reason: str
    client_id: ClientId = CLIENT_ID


class Unsuitable(RowAnswer):
    """An image that is not assigned any more, until an administrator undoes that (`undone_at`)."""

    image: str = Field(validation_alias="image_id")
    reason: str
    by: str
    marked_at: IsoTime
    undone_by: str | None
    undone_at: IsoTime | None


class StudyOptions(BaseModel):
    """The number of readers of an image; 1 ends the reader study."""

    readers: int

    @model_validator(mode="before")
    @classmethod
    def _check_readers(cls, values: Any) -> Any:
        readers = as_number("readers", require_object(values).get("readers"), 1, MAX_READERS)
        if readers != int(readers):
            raise ConfigError(f"readers: {readers:g} is not a whole number")
        return {"readers": int(readers)}


class Consensus(BaseModel):
    """The newest consensus label; `of` are the version numbers of the readings that it combines."""

    number: int
    method: str | None
    of: list[int]
    submitted_at: str
    is_of_all_readings: bool
    is_current: bool


class Study(BaseModel):
    """A reader study, and the mean DSC between readers by organ."""

    image: str
    readers: int
    by: str | None
    since: str | None
    have_read: list[str]
    is_finished: bool
    mean_dsc: dict[str, float | None] | None
    consensus: Consensus | None


class Reading(BaseModel):
    """The label of one reader."""

    reader: str
    number: int
    source: str
    organs: list[str]
    submitted_at: str


class ReaderPair(BaseModel):
    """Agreement of two readings: DSC by organ."""

    readers: list[str | None]
    of: list[int]
    dsc: dict[str, float | None]


class StudyDetails(Study):
    """A reader study with its readings and the agreement of each two."""

    readings: list[Reading]
    pairs: list[ReaderPair]


@router.post("/activelearning/{strategy}", response_model_exclude_unset=True)
def next_sample(
    request: Request, strategy: str, params: StrategyOptions | None = None, user: User = USER
) -> NextSample:
    """Choose the image to contour next, and lease it to the user or client that asks."""
    options = (params or StrategyOptions()).model_dump(exclude_none=True)
    holder = holder_of(user, options["client_id"])
    app = get_app()
    sample = app.next_sample({**options, "strategy": strategy, "holder": holder})
    if "id" not in sample:
        return NextSample.model_validate(sample)
    # Clients load the image with this information: file name and path, or the UIDs of its DICOM series.
    info = image_info(request, sample["id"])
    free_form = {key: value for key, value in info.items() if key not in NextSample.model_fields}
    return NextSample.model_validate({**free_form, **sample})


@router.get("/organnet/leases", response_model=list[Lease])
def list_leases(_user: User = USER) -> Sequence[LeaseRow]:
    """Return the active leases, oldest first."""
    return get_app().assignments.leases.active()


@router.post("/organnet/leases/{image}", response_model=Lease)
def take_lease(
    user: User = ANNOTATOR, image: str = KNOWN_IMAGE, body: LeaseOptions | None = None
) -> LeaseRow:
    """Lease a named image, or extend the client's own lease of it."""
    app = get_app()
    options = body or LeaseOptions()
    minutes = app.config.lease_minutes if options.minutes is None else options.minutes
    holder = holder_of(user, options.client_id)
    return app.assignments.leases.grant(image, holder, for_s=60.0 * minutes)


@router.delete("/organnet/leases/{image}", response_model=Lease)
def release_lease(
    image: str, client_id: str = "", holder: str | None = None, user: User = ANNOTATOR_OR_REVIEWER
) -> LeaseRow:
    """End the client's own lease; reviewers may end any lease by naming its `holder`."""
    own = holder_of(user, client_id)
    if holder is not None and holder != own and not may_review(user):
        raise HTTPException(403, "only a reviewer or an admin may end another user's lease")
    image_id = require_image_id(image)
    return get_app().assignments.leases.release(image_id, own if holder is None else holder)


@router.post("/organnet/leases/{image}/skip")
def skip_case(image: str, client_id: str = "", user: User = ANNOTATOR) -> SkippedLease:
    """End the client's own lease; for 12 hours the case is offered to others only."""
    lease = get_app().assignments.leases.skip(require_image_id(image), holder_of(user, client_id))
    again = (lease.ended_at or now()) + SKIPPED_FOR
    values = Lease.model_validate(lease).model_dump()
    return SkippedLease(**values, offered_again_at=again.isoformat())


@router.get("/organnet/unsuitable", response_model=list[Unsuitable])
def list_unsuitable(with_undone: bool = False, _user: User = USER) -> Sequence[UnsuitableImage]:
    """Return the images that are marked as unsuitable; also those of which that was undone, if asked for."""
    return get_app().assignments.unsuitable.all(with_undone=with_undone)


@router.post("/organnet/unsuitable/{image}", response_model=Unsuitable)
def mark_unsuitable(
    body: UnsuitableOptions, user: User = ANNOTATOR, image: str = KNOWN_IMAGE
) -> UnsuitableImage:
    """Take an image out of the cases to contour, with a reason; its leases end, its labels stay."""
    by = holder_of(user, body.client_id)
    return get_app().assignments.unsuitable.mark(image, body.reason, by)


@router.delete("/organnet/unsuitable/{image}", response_model=Unsuitable)
def undo_unsuitable(image: str, client_id: str = "", user: User = ADMIN) -> UnsuitableImage:
    """Put an image back among the cases to contour."""
    by = holder_of(user, client_id)
    return get_app().assignments.unsuitable.undo(require_image_id(image), by)


@router.get("/organnet/readers")
def list_studies(_user: User = USER) -> list[Study]:
    """Return every reader study: the readers who have submitted, and their mean DSC by organ."""
    app = get_app()
    return [
        _study(row.image_id, row, app.label_history.history(row.image_id, FINAL))
        for row in app.assignments.readers.all()
    ]


@router.get("/organnet/readers/{image}")
def show_study(_user: User = USER, image: str = KNOWN_IMAGE) -> StudyDetails:
    """Return the readings of an image, their agreement and the consensus; also without a reader study.

    The agreement was computed together with the consensus, in the background.
    """
    app = get_app()
    row = next((s for s in app.assignments.readers.all() if s.image_id == image), None)
    return _study(image, row, app.label_history.history(image, FINAL))


@router.post("/organnet/readers/{image}")
def open_study(body: StudyOptions, user: User = REVIEWER, image: str = KNOWN_IMAGE) -> StudyDetails:
    """Ask for several independent readers of an image; 1 ends the reader study."""
    assignments = get_app().assignments
    assignments.readers.set_readers(image, body.readers, author_of(user))
    assignments.wake()
    return show_study(user, image)


def _study(
    image_id: str, row: ReaderStudy | None, versions: Sequence[LabelVersion]
) -> StudyDetails:
    readings = readings_by_reader(versions)
    needed = 1 if row is None else row.readers
    consensus = newest_consensus(versions)
    details = {} if consensus is None else consensus.info.get(CONSENSUS, {})
    agreement = details.get("agreement", {})
    return StudyDetails(
        image=image_id,
        readers=needed,
        by=None if row is None else row.by,
        since=None if row is None else row.since.isoformat(),
        have_read=list(readings),
        is_finished=len(readings) >= needed,
        mean_dsc=agreement.get("mean"),
        consensus=None if consensus is None else _consensus(consensus, versions),
        readings=[
            Reading(
                reader=reader,
                number=version.number,
                source=version.source,
                organs=version.organs,
                submitted_at=version.submitted_at.isoformat(),
            )
            for reader, version in readings.items()
        ],
        pairs=_pairs(versions, agreement.get("pairs", [])),
    )


def _consensus(consensus: LabelVersion, versions: Sequence[LabelVersion]) -> Consensus:
    readings = list(readings_by_reader(versions).values())
    visible = [version for version in versions if version.hidden_at is None]
    return Consensus(
        number=consensus.number,
        method=consensus.info.get(CONSENSUS, {}).get("method"),
        of=reading_numbers(consensus),
        submitted_at=consensus.submitted_at.isoformat(),
        is_of_all_readings=is_made_from(consensus, readings, versions),
        is_current=visible[-1].id == consensus.id,
    )


def _pairs(
    versions: Sequence[LabelVersion], pairs: Sequence[Mapping[str, Any]]
) -> list[ReaderPair]:
    """Return the DSC of each two readings, as computed with the newest consensus."""
    # The pairs also include readings that their reader has replaced since.
    reader_of = {
        version.number: reader
        for end in range(1, len(versions) + 1)
        for reader, version in readings_by_reader(versions[:end]).items()
    }
    return [
        ReaderPair(readers=[reader_of.get(number) for number in pair["of"]], **pair)
        for pair in pairs
    ]
