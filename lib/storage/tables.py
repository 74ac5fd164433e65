"""What the database holds.

A row is added, and a few of its columns are filled in later; nothing that says what a person or a run did is
ever changed or removed. Volumes and weights are files, named here by the SHA-256 of their content.
"""

from datetime import datetime, timezone
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, ForeignKey, Index, String, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = 1
"""Number of the newest migration, in `lib/storage/migrations/versions`."""


def now() -> datetime:
    """Return this moment, in UTC."""
    return datetime.now(timezone.utc)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite keeps no time zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base's
        """Return what is stored.

        Raises:
            ValueError: If the moment has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone")
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base's
        """Return what was stored, in UTC."""
        return None if value is None else value.replace(tzinfo=timezone.utc)


class Base(DeclarativeBase):
    """Of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Meta(Base):
    """What is known of the database itself."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class LabelVersion(Base):
    """One label of one image, as somebody submitted it; the file is never changed.

    Attributes:
        number: 1, 2, 3 ... for an image and tag.
        digest: SHA-256 of the stored file.
        parent_id: The version that it took the place of.
        source: `client`, `folder` (a file that somebody laid there), `infer`, `restore`,
            `consensus` (of the readings of a reader study), or `pacs` (a SEG or RTSTRUCT that was found there).
        author: Who submitted it; empty where nobody logs in.
        client: The program's `client_id`.
        model_version: The model that served when it was submitted, or that the client named.
        organs: TG-263 names with at least one voxel.
        doubts: What looked wrong about it (`lib.organs.plausibility`), in sentences.
        info: What the client sent with it.
        is_in_place: Whether the copy that people and clients read, `labels/<tag>/`, was written.
        hidden_at: When it was removed from sight; the file stays.
    """

    __tablename__ = "label_versions"
    __table_args__ = (
        UniqueConstraint("image_id", "tag", "number"),
        Index("by_time", "submitted_at"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    tag: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("label_versions.id"))
    source: Mapped[str]
    author: Mapped[str] = mapped_column(default="")
    client: Mapped[str] = mapped_column(default="")
    model_version: Mapped[str | None]
    organs: Mapped[list[Any]]
    doubts: Mapped[list[Any]] = mapped_column(default=list)
    info: Mapped[dict[str, Any]]
    submitted_at: Mapped[datetime] = mapped_column(default=now)
    is_in_place: Mapped[bool] = mapped_column(default=False)
    hidden_at: Mapped[datetime | None]


class CaseSet(Base):
    """Whether a labelled case is for training or for the referee: decided once, for ever."""

    __tablename__ = "case_sets"
    image_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    set: Mapped[str]
    why: Mapped[str]
    decided_at: Mapped[datetime] = mapped_column(default=now)


class Run(Base):
    """One retraining, from the decision to begin it to the decision on its model.

    Attributes:
        state: One of `lib.retrain.run_records.RunState`.
        why: What started it.
        request: Epochs, seed and the like, as they were decided at its beginning.
        cases: What it learns from and is judged on: image id, label version, digest, set.
        initial_version: The model that it goes on from.
        attempts: How often its process was started.
        pid: Of its process.
        progress: Epoch, loss, seconds left; what the clients show.
        notes: What the run had to say on its way, oldest first.
        candidate: The model version that it made.
        outcome: How it ended, in words.
    """

    __tablename__ = "runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(index=True)
    why: Mapped[str]
    request: Mapped[dict[str, Any]]
    cases: Mapped[list[Any]]
    initial_version: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    pid: Mapped[int | None]
    progress: Mapped[dict[str, Any]]
    notes: Mapped[list[Any]]
    candidate: Mapped[str | None]
    outcome: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class ModelVersion(Base):
    """A model that was made here or brought in, and what was decided about it.

    Attributes:
        version: As in `lib.models.registry`: the weights' hash is part of it.
        parent: The model whose weights it began with.
        run_id: The run that made it; None for one from elsewhere.
        recipe: Name of its recipe.
        commit: Of the program that trained it.
        labels: Image id, label version and digest of each label that it learned from.
        labels_seen: How many labels it and its parents learned from, each counted once.
        metrics: Organ -> mean DSC on the referee's cases, when it was judged.
        decision: `waiting`, `promoted`, `rejected`; `starter` for the one that comes with the program.
        reason: Why, in words.
        report: Everything that the decision rests on, per case and organ; `earlier_decisions` lists those
            that were taken back.
        pending: Why and by whom it is to serve, from the decision until it does; else None.
        pruned_at: When its weights were removed.
    """

    __tablename__ = "models"
    version: Mapped[str] = mapped_column(String(120), primary_key=True)
    parent: Mapped[str | None]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    recipe: Mapped[str]
    commit: Mapped[str | None]
    labels: Mapped[list[Any]]
    labels_seen: Mapped[int] = mapped_column(default=0)
    seed: Mapped[int] = mapped_column(default=0)
    metrics: Mapped[dict[str, Any]]
    decision: Mapped[str] = mapped_column(default="waiting")
    reason: Mapped[str] = mapped_column(default="")
    report: Mapped[dict[str, Any]]
    pending: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=now)
    decided_at: Mapped[datetime | None]
    pruned_at: Mapped[datetime | None]


class Promotion(Base):
    """One change of the served model; the last row is what serves."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(String(120))
    previous: Mapped[str | None]
    reason: Mapped[str]
    by: Mapped[str]
    since: Mapped[datetime] = mapped_column(default=now)


class Score(Base):
    """What was computed of one image: once for each model and kind, and never changed.

    Attributes:
        image_id: Of the image.
        model_version: Of the model; empty for what needs none.
        kind: One of `lib.activelearning.pool.ScoreKind`.
        found: The numbers, as JSON; empty where it failed.
        trouble: Why it failed; it is not tried again for this model.
        seconds: That it took.
    """

    __tablename__ = "scores"
    __table_args__ = (UniqueConstraint("image_id", "model_version", "kind"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200))
    model_version: Mapped[str] = mapped_column(String(120), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    found: Mapped[dict[str, Any]]
    trouble: Mapped[str | None]
    seconds: Mapped[float] = mapped_column(default=0.0)
    computed_at: Mapped[datetime] = mapped_column(default=now)


class Lease(Base):
    """A case that was handed out to somebody; one that ended stays as what happened.

    Attributes:
        holder: The user, where people log in, else the client's id.
        strategy: That chose it; empty where somebody took it by name.
        why: What the strategy said (`lib.activelearning.pool.Choice`).
        expires_at: When it ends by itself.
        ended_at: When it ended; None while it holds.
        ended_by: `label`, `release` or `expiry`.
    """

    __tablename__ = "leases"
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    holder: Mapped[str] = mapped_column(String(200), index=True)
    strategy: Mapped[str] = mapped_column(default="")
    why: Mapped[dict[str, Any]]
    granted_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
    ended_by: Mapped[str | None]


class ReaderStudy(Base):
    """An image that several people contour, each for themselves.

    Attributes:
        readers: How many.
        by: Who asked for it.
    """

    __tablename__ = "reader_studies"
    image_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    readers: Mapped[int]
    by: Mapped[str]
    since: Mapped[datetime] = mapped_column(default=now)


class EditCost(Base):
    """What a person changed of a prediction before submitting: one submitted label against one model.

    Attributes:
        label_version_id: What was submitted.
        model_version: The model that served then.
        was_trained_on: Whether that model had learned from this case: it is no measure then.
        found: Organ -> numbers (`lib.evaluation.edit_cost`); empty where it failed.
        mean_dsc: Over the organs that were submitted.
        added_path_mm: Sum over the organs.
        changed_voxels: Sum over the organs.
        trouble: Why it failed.
    """

    __tablename__ = "edit_costs"
    label_version_id: Mapped[int] = mapped_column(ForeignKey("label_versions.id"), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(120))
    was_trained_on: Mapped[bool] = mapped_column(default=False)
    found: Mapped[dict[str, Any]]
    mean_dsc: Mapped[float | None]
    added_path_mm: Mapped[float | None]
    changed_voxels: Mapped[int | None]
    trouble: Mapped[str | None]
    computed_at: Mapped[datetime] = mapped_column(default=now)


class PacsSeries(Base):
    """A series that a PACS lists as a scan, and whether it is one that can be contoured.

    Attributes:
        pacs: Address of the PACS.
        uid: SeriesInstanceUID (0020,000E); the image's id.
        study_uid: StudyInstanceUID (0020,000D).
        about: What the PACS tells of it, by DICOM keyword.
        verdict: One of `lib.pacs.series_catalog.SeriesCheck`.
        reason: Why it is refused or passed over.
        is_listed: Whether the PACS listed it last time.
    """

    __tablename__ = "pacs_series"
    pacs: Mapped[str] = mapped_column(String(500), primary_key=True)
    uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_uid: Mapped[str] = mapped_column(String(64))
    about: Mapped[dict[str, Any]]
    verdict: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(default="")
    is_listed: Mapped[bool] = mapped_column(default=True)
    first_seen_at: Mapped[datetime] = mapped_column(default=now)


class PacsObject(Base):
    """A DICOM SEG or RTSTRUCT that was found in a PACS, and what became of it.

    Attributes:
        sop_uid: SOPInstanceUID (0008,0018).
        series_uid: SeriesInstanceUID of the series that it is in.
        study_uid: StudyInstanceUID.
        image_id: The CT that it was drawn on; empty where it says none.
        verdict: `kept` as a label version, `ours`, `refused`, or `waiting` for its CT to be listed.
        reason: Why it was refused.
    """

    __tablename__ = "pacs_objects"
    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    series_uid: Mapped[str] = mapped_column(String(64))
    study_uid: Mapped[str] = mapped_column(String(64))
    image_id: Mapped[str] = mapped_column(String(200), default="")
    verdict: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(default="")
    looked_at: Mapped[datetime] = mapped_column(default=now)


class PacsObjectScans(Base):
    """What an object of a PACS was drawn on, as it was when it was looked at.

    Attributes:
        sop_uid: As in `PacsObject`.
        slices: SeriesInstanceUID -> how many instances the PACS listed of it; None where it listed none.
    """

    __tablename__ = "pacs_object_scans"
    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    slices: Mapped[dict[str, Any]]


class Delivery(Base):
    """A label version on its way to a PACS, as a DICOM SEG.

    Attributes:
        pacs: Address of the PACS.
        sop_uid: Of the SEG; it follows from the version, so that it can be sent twice and is there once.
        image_id: The image, and
        number: the number of its final label.
        attempts: How often it was tried.
        next_at: When it is tried again.
        trouble: Why it did not arrive yet, or never will.
        delivered_at: When it was there.
        is_given_up: Whether there is nothing to send, or no use in trying again.
    """

    __tablename__ = "deliveries"
    pacs: Mapped[str] = mapped_column(String(500), primary_key=True)
    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    image_id: Mapped[str] = mapped_column(String(200), index=True)
    number: Mapped[int]
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime] = mapped_column(default=now)
    trouble: Mapped[str] = mapped_column(default="")
    delivered_at: Mapped[datetime | None]
    is_given_up: Mapped[bool] = mapped_column(default=False)


class Setting(Base):
    """A setting that an admin changed while the server ran; it outlives restarts."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)
    by: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(default=now)
