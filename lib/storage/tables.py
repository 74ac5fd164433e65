"""Tables of the workflow database.

Rows are added, and a few of their columns are filled in later; apart from that, a row about an action of a
user or a run is never changed or removed. Volumes and weights are files, named by the SHA-256 of their content.
"""

from datetime import datetime, timezone
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, ForeignKey, Index, String, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = 6
"""Number of the newest migration, in `lib/storage/migrations/versions`."""


def now() -> datetime:
    """Return the present time, in UTC."""
    return datetime.now(timezone.utc)


class UtcTime(TypeDecorator[datetime]):
    """A time in UTC; SQLite stores no time zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - base class
        """Return the value to store.

        Raises:
            ValueError: If the time has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; a time with one is expected")
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - base class
        """Return the stored time, in UTC."""
        return None if value is None else value.replace(tzinfo=timezone.utc)


class Base(DeclarativeBase):
    """Declarative base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Meta(Base):
    """Properties of the database itself, such as the number of its schema."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class LabelVersion(Base):
    """One label of one image, as it was submitted; its file is never changed."""

    __tablename__ = "label_versions"
    __table_args__ = (
        UniqueConstraint("image_id", "tag", "number"),
        Index("by_time", "submitted_at"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    tag: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    """1, 2, 3 ... for an image and tag."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the stored file."""
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("label_versions.id"))
    """The version that this one replaced."""
    source: Mapped[str]
    """`client`, `folder` (a file in the labels folder), `infer`, `restore`, `consensus` (of the readings of a
    reader study), or `pacs` (a SEG or RTSTRUCT in the PACS)."""
    author: Mapped[str] = mapped_column(default="")
    """User who submitted the label; empty without a login."""
    client: Mapped[str] = mapped_column(default="")
    """`client_id` that the client program sent."""
    model_version: Mapped[str | None]
    """The active model at the time of submission, or the model that the client named."""
    organs: Mapped[list[Any]]
    """TG-263 names with at least one voxel."""
    doubts: Mapped[list[Any]] = mapped_column(default=list)
    """Plausibility warnings (`lib.organs.plausibility`), one sentence each."""
    changes: Mapped[list[Any]] = mapped_column(default=list)
    """Differences between what was sent and what is stored, one sentence each."""
    unchanged_from: Mapped[str | None] = mapped_column(String(120))
    """The model whose contours a person accepted unchanged: the label equals them voxel by voxel."""
    info: Mapped[dict[str, Any]]
    """Attributes that the client sent with the label."""
    submitted_at: Mapped[datetime] = mapped_column(default=now)
    is_in_place: Mapped[bool] = mapped_column(default=False)
    """Whether the working copy, which people and clients read in `labels/<tag>/`, was written."""
    hidden_at: Mapped[datetime | None]
    """Time at which the version was hidden from users; the file stays."""


class ImageInfo(Base):
    """Attributes that clients gave to an image."""

    __tablename__ = "image_infos"
    image_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    info: Mapped[dict[str, Any]]


class LabelInfo(Base):
    """Attributes that clients added to a label version after its submission."""

    __tablename__ = "label_infos"
    label_version_id: Mapped[int] = mapped_column(ForeignKey("label_versions.id"), primary_key=True)
    info: Mapped[dict[str, Any]]


class ImageChange(Base):
    """A change of the labels or attributes of an image (`lib.storage.image_changes`); old rows are removed."""

    __tablename__ = "image_changes"
    # AUTOINCREMENT: a number is never used twice, even if the newest rows were removed.
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200))


class CaseSet(Base):
    """Whether a labelled case is for training or for evaluation; decided once and never changed."""

    __tablename__ = "case_sets"
    image_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    set: Mapped[str]
    why: Mapped[str]
    decided_at: Mapped[datetime] = mapped_column(default=now)


class Run(Base):
    """One retraining, from the decision to start it to the promotion decision on its model."""

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(index=True)
    """One of `lib.retrain.run_records.RunState`."""
    why: Mapped[str]
    """The reason for starting it."""
    request: Mapped[dict[str, Any]]
    """Epochs, seed and similar settings, as decided at its start."""
    cases: Mapped[list[Any]]
    """Training and evaluation cases: image id, label version, digest, set."""
    initial_version: Mapped[str | None]
    """The model whose weights it starts from."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Number of starts of its process."""
    pid: Mapped[int | None]
    """Process id."""
    progress: Mapped[dict[str, Any]]
    """Epoch, loss, remaining seconds; clients show them."""
    notes: Mapped[list[Any]]
    """Messages of the run, oldest first."""
    candidate: Mapped[str | None]
    """Version of the model that the run made."""
    outcome: Mapped[str | None]
    """Its result, in words."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class ModelVersion(Base):
    """A model that was trained or imported, and its promotion decision."""

    __tablename__ = "models"
    version: Mapped[str] = mapped_column(String(120), primary_key=True)
    """As in `lib.models.registry`: it contains a hash of the weights."""
    parent: Mapped[str | None]
    """The model whose weights its training started from."""
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    """The run that made it; None for an imported one."""
    recipe: Mapped[str]
    """Name of its recipe."""
    commit: Mapped[str | None]
    """Commit of the program that trained it."""
    labels: Mapped[list[Any]]
    """Image id, label version and digest of each label that it was trained on."""
    labels_seen: Mapped[int] = mapped_column(default=0)
    """Number of labels that it and its parents were trained on, each counted once."""
    seed: Mapped[int] = mapped_column(default=0)
    metrics: Mapped[dict[str, Any]]
    """Organ -> mean DSC on the evaluation cases, if it was evaluated."""
    decision: Mapped[str] = mapped_column(default="waiting")
    """`waiting`, `promoted`, `rejected`; `starter` for the model that comes with the program."""
    reason: Mapped[str] = mapped_column(default="")
    """Reason of the decision, in words."""
    report: Mapped[dict[str, Any]]
    """The data behind the decision, per case and organ; `earlier_decisions` lists reversed decisions."""
    pending: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Reason and user of its promotion, from the decision until it is active; else None."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    decided_at: Mapped[datetime | None]
    pruned_at: Mapped[datetime | None]
    """Time at which its weights were removed."""


class Promotion(Base):
    """One change of the active model; the last row names the active one."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(String(120))
    previous: Mapped[str | None]
    reason: Mapped[str]
    by: Mapped[str]
    since: Mapped[datetime] = mapped_column(default=now)


class Prediction(Base):
    """Contours that a model drew on an image of the store; old rows are removed."""

    __tablename__ = "predictions"
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    model_version: Mapped[str] = mapped_column(String(120))
    is_deep: Mapped[bool]
    """Whether several passes were averaged."""
    digest: Mapped[str] = mapped_column(String(64))
    """`lib.imaging.volumes.LabelVolume.digest` of the contours."""
    scan_state: Mapped[str] = mapped_column(String(64))
    """Changes when the files of the scan change (`lib.isolation.inputs.Input.state`)."""
    organs: Mapped[dict[str, Any]]
    """TG-263 name -> `lib.inference.organ_summary.OrganSummary`."""
    computed_at: Mapped[datetime] = mapped_column(default=now)


class Score(Base):
    """A result computed from one image: once for each model and kind, and never changed."""

    __tablename__ = "scores"
    __table_args__ = (UniqueConstraint("image_id", "model_version", "kind"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200))
    model_version: Mapped[str] = mapped_column(String(120), index=True)
    """Empty for a kind that needs no model."""
    kind: Mapped[str] = mapped_column(String(20))
    """One of `lib.activelearning.pool.ScoreKind`."""
    values: Mapped[dict[str, Any]] = mapped_column("found", key="values")
    """The numbers, as JSON; empty if the computation failed."""
    error: Mapped[str | None] = mapped_column("trouble", key="error")
    """Error message, if it failed; it is not tried again for this model."""
    seconds: Mapped[float] = mapped_column(default=0.0)
    """Duration of the computation in s."""
    computed_at: Mapped[datetime] = mapped_column(default=now)


class Lease(Base):
    """A case that was assigned to an annotator; leases that ended are kept."""

    __tablename__ = "leases"
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    holder: Mapped[str] = mapped_column(String(200), index=True)
    """The user; without a login, the client's id."""
    strategy: Mapped[str] = mapped_column(default="")
    """Strategy that chose the case; empty if the user named it."""
    why: Mapped[dict[str, Any]]
    """The strategy's reasons (`lib.activelearning.pool.Choice`)."""
    granted_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    """Time at which it ends without further action."""
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
    """Time at which it ended; None while it is active."""
    ended_by: Mapped[str | None]
    """`label`, `release`, `expiry`, `skip`, or `unsuitable` if the image was marked so."""


class UnsuitableImage(Base):
    """An image that a user marked as unsuitable, until an administrator undoes that; rows are kept."""

    __tablename__ = "unsuitable_images"
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    reason: Mapped[str] = mapped_column(String(500))
    by: Mapped[str] = mapped_column(String(200))
    """The user; without a login, the client's id."""
    marked_at: Mapped[datetime] = mapped_column(default=now)
    undone_by: Mapped[str | None] = mapped_column(String(200))
    undone_at: Mapped[datetime | None]
    """Time at which it was undone; None while the image is unsuitable."""


class ReaderStudy(Base):
    """An image that several readers contour independently."""

    __tablename__ = "reader_studies"
    image_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    readers: Mapped[int]
    """Number of readers."""
    by: Mapped[str]
    """User who requested it."""
    since: Mapped[datetime] = mapped_column(default=now)


class EditCost(Base):
    """Changes of a prediction before its submission: one submitted label compared with one model."""

    __tablename__ = "edit_costs"
    label_version_id: Mapped[int] = mapped_column(ForeignKey("label_versions.id"), primary_key=True)
    """The submitted label."""
    model_version: Mapped[str] = mapped_column(String(120))
    """The active model at that time."""
    was_trained_on: Mapped[bool] = mapped_column(default=False)
    """Whether that model was trained on this case; the cost then does not measure its quality."""
    values: Mapped[dict[str, Any]] = mapped_column("found", key="values")
    """Organ -> numbers (`lib.evaluation.edit_cost`); empty if the measurement failed."""
    mean_dsc: Mapped[float | None]
    """Mean over the submitted organs."""
    added_path_mm: Mapped[float | None]
    """Sum over the organs."""
    changed_voxels: Mapped[int | None]
    """Sum over the organs."""
    error: Mapped[str | None] = mapped_column("trouble", key="error")
    """Error message, if it failed."""
    computed_at: Mapped[datetime] = mapped_column(default=now)


class PacsSeries(Base):
    """A series that a PACS lists as a scan, and whether it can be contoured."""

    __tablename__ = "pacs_series"
    pacs: Mapped[str] = mapped_column(String(500), primary_key=True)
    """Address of the PACS."""
    uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SeriesInstanceUID (0020,000E); the image's id."""
    study_uid: Mapped[str] = mapped_column(String(64))
    """StudyInstanceUID (0020,000D)."""
    about: Mapped[dict[str, Any]]
    """Attributes in the PACS's list, by DICOM keyword, and the numbers of slices and studies."""
    verdict: Mapped[str] = mapped_column(String(20))
    """One of `lib.pacs.series_catalog.SeriesCheck`."""
    reason: Mapped[str] = mapped_column(default="")
    """Why the series is refused or ignored."""
    is_listed: Mapped[bool] = mapped_column(default=True)
    """Whether the PACS's last list contained it."""
    first_seen_at: Mapped[datetime] = mapped_column(default=now)


class PacsObject(Base):
    """Processing status of a DICOM SEG or RTSTRUCT in a PACS."""

    __tablename__ = "pacs_objects"
    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SOPInstanceUID (0008,0018)."""
    series_uid: Mapped[str] = mapped_column(String(64))
    """SeriesInstanceUID of the series that contains it."""
    study_uid: Mapped[str] = mapped_column(String(64))
    """StudyInstanceUID."""
    image_id: Mapped[str] = mapped_column(String(200), default="")
    """The CT that the object was drawn on; empty if it references no CT."""
    verdict: Mapped[str] = mapped_column(String(20))
    """`kept` as a label version, `ours`, `refused`, or `waiting` until the PACS lists its CT."""
    reason: Mapped[str] = mapped_column(default="")
    """Why the object was refused."""
    looked_at: Mapped[datetime] = mapped_column(default=now)


class PacsObjectScans(Base):
    """The series that an object of a PACS was drawn on, as they were when it was processed."""

    __tablename__ = "pacs_object_scans"
    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """As in `PacsObject`."""
    slices: Mapped[dict[str, Any]]
    """SeriesInstanceUID -> number of its instances in the PACS; None if the PACS did not list it."""


class Delivery(Base):
    """A label version that is to be sent to a PACS, as a DICOM SEG."""

    __tablename__ = "deliveries"
    pacs: Mapped[str] = mapped_column(String(500), primary_key=True)
    """Address of the PACS."""
    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SOPInstanceUID of the SEG, derived from the version: a SEG that is sent twice is in the PACS once."""
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    number: Mapped[int]
    """Version number of the image's final label."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Number of attempts to send it."""
    next_at: Mapped[datetime] = mapped_column(default=now)
    """Time of the next attempt."""
    error: Mapped[str] = mapped_column("trouble", key="error", default="")
    """Error message of the last attempt."""
    delivered_at: Mapped[datetime | None]
    """Time at which the PACS confirmed it."""
    is_given_up: Mapped[bool] = mapped_column(default=False)
    """Whether there is no further attempt, because there is nothing to send or it cannot succeed."""


class Setting(Base):
    """A setting that an administrator changed while the server ran; it stays after restarts."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)
    by: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(default=now)
