"""Backup and restore of labels, models and the workflow database, also while the server runs.

The archive is a tar of the database, every label version, the promoted models, and last a list of the SHA-256
of each file. A backup is the state of one moment: the database is copied first, and a file that a row of the
copy names was on disk before the row and never changes. Scans are not in it: the hospital keeps them.

Restoring adds what is missing and changes nothing that exists: label versions keep their number (the next free
one if it is taken), author and time, and the newest by time is the current one. The running or next server
writes the working copies in `labels/`. Nothing is restored from a damaged archive.
"""

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from sqlalchemy import String, insert, select

from lib import __version__
from lib.activelearning.edit_costs import EditCostRecords
from lib.errors import StateError
from lib.labels.history import LabelHistory, checked_record
from lib.models.registry import SERVED, Registry
from lib.storage.atomic_files import copy_file, digest_of, make_folder, replacing
from lib.storage.database import FILE, Database, state_folder
from lib.storage.leftovers import scratch_folder
from lib.storage.tables import (
    Base,
    Delivery,
    EditCost,
    LabelVersion,
    Meta,
    PacsObject,
    PacsObjectScans,
    PacsSeries,
)

ABOUT = "organnet-backup.json"
RECORDS = "labels.json"
CHECKSUMS = "checksums.json"
FORMAT = 1
_FILES = (ABOUT, RECORDS, CHECKSUMS, FILE)
_VOLUME = re.compile(r"labels/([0-9a-f]{64})\.nii\.gz")
_MODEL = re.compile(r"models/[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.(safetensors|json)")
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """Numbers of label versions and promoted models in a backup."""

    versions: int
    models: int
    damaged: tuple[str, ...]
    """Names of files that are missing or damaged here, and so not in the backup."""


@dataclass(frozen=True, slots=True)
class RestoreSummary:
    """Numbers of restored label versions, models and rows of other tables."""

    versions: int
    models: int
    rows: int


def create(studies: str, model_dir: Path, output: Path) -> BackupSummary:
    """Write a backup to `output`, atomically; compressed if its name ends in `gz`.

    Raises:
        StateError: If there is nothing to save.
    """
    state = state_folder(studies, model_dir)
    if not (state / FILE).is_file():
        raise StateError(
            f"{state / FILE}: not there; give the --studies that the server was started with"
        )
    make_folder(output.absolute().parent)
    with (
        replacing(output.absolute()) as beside,
        scratch_folder(beside.parent) as scratch,
    ):
        copy = scratch / FILE
        with closing(Database(state / FILE)) as live:
            live.copy_to(copy)
        with (
            closing(Database(copy)) as copied,
            _packed(beside) as file,
            tarfile.open(fileobj=file, mode="w|") as tar,
        ):
            return _Writer(tar).write(copy, LabelHistory(copied, state), model_dir)


@contextmanager
def _packed(path: Path) -> Iterator[IO[bytes]]:
    """Yield `path` to write to; compressed if it ends in `gz`, weakly: volumes are compressed already."""
    if path.name.endswith("gz"):
        with gzip.open(path, "wb", compresslevel=1) as packed:
            yield packed  # type: ignore[misc]
    else:
        with path.open("wb") as plain:
            yield plain


class _Writer:
    """Writes one archive, file by file, with the digests of the files."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._digests: dict[str, str] = {}
        self._damaged: list[str] = []

    def write(self, database: Path, history: LabelHistory, model_dir: Path) -> BackupSummary:
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._add_json(ABOUT, {"format": FORMAT, "program": __version__, "created": created})
        records = history.records()
        self._add_file(FILE, database)
        for digest in sorted({record["digest"] for record in records}):
            path = history.path(digest)
            if not path.is_file() or digest_of(path) != digest:
                self._damaged.append(f"label volume {digest}")
                continue
            self._add_file(f"labels/{digest}.nii.gz", path)
        self._add_json(RECORDS, records)
        models = self._add_models(model_dir)
        self._add_json(CHECKSUMS, self._digests)
        return BackupSummary(len(records), models, tuple(self._damaged))

    def _add_models(self, model_dir: Path) -> int:
        pointer = model_dir / SERVED
        if not pointer.is_file():
            return 0
        # Read before the list of models, so that the active model is in the backup.
        content = pointer.read_bytes()
        added = 0
        for version in Registry(model_dir).promoted():
            files = [model_dir / f"{version}{suffix}" for suffix in (".safetensors", ".json")]
            if all(file.is_file() for file in files):
                for file in files:
                    self._add_file(f"models/{file.name}", file)
                added += 1
            else:
                self._damaged.append(f"model {version}")
        self._add(f"models/{SERVED}", io.BytesIO(content))
        return added

    def _add_json(self, name: str, value: Any) -> None:
        self._add(name, io.BytesIO(json.dumps(value, indent=1).encode()))

    def _add_file(self, name: str, path: Path) -> None:
        # None of these files changes between the two readings of its content.
        with path.open("rb") as file:
            self._add(name, file)

    def _add(self, name: str, content: io.BytesIO | io.BufferedReader) -> None:
        self._digests[name] = hashlib.file_digest(content, "sha256").hexdigest()
        member = tarfile.TarInfo(name)
        member.size = content.seek(0, io.SEEK_END)
        content.seek(0)
        self._tar.addfile(member, content)


def restore(archive: Path, studies: str, model_dir: Path) -> RestoreSummary:
    """Add the content of an archive that is missing here.

    Raises:
        StateError: If it is not a backup, is damaged, or is from a newer program. Nothing changes then.
    """
    state = state_folder(studies, model_dir)
    make_folder(state)
    with _unpacked(archive, state) as folder:
        records = _records(folder)
        with closing(Database(folder / FILE)) as saved, closing(Database(state / FILE)) as own:
            history = LabelHistory(own, state)
            # First the versions that are on disk and not in the database, which have numbers already.
            history.restore_from_files()
            for volume in sorted((folder / "labels").glob("*.nii.gz")):
                history.keep_volume(volume)
            versions = history.merge(records)
            rows = _merge_tables(saved, own) + EditCostRecords(own).merge(saved)
            models = _merge_models(folder / "models", model_dir)
    return RestoreSummary(versions, models, rows)


@contextmanager
def _unpacked(archive: Path, state: Path) -> Iterator[Path]:
    """Yield a folder with the verified files of an archive."""
    with scratch_folder(state) as scratch:
        folder = Path(scratch)
        (folder / "labels").mkdir()
        (folder / "models").mkdir()
        try:
            with tarfile.open(archive, "r|*") as tar:
                digests = {member.name: _extract(tar, member, folder) for member in tar}
        except FileNotFoundError as error:
            raise StateError(f"{archive}: there is no such file") from error
        except _DAMAGE as error:
            raise StateError(
                f"{archive}: no backup, or damaged or cut short ({error}); nothing was restored"
            ) from error
        _verify(archive, folder, digests)
        yield folder


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> str:
    """Write one file of an archive below `folder`, and return its SHA-256."""
    name = member.name
    is_expected = name in _FILES or _VOLUME.fullmatch(name) or _MODEL.fullmatch(name)
    if not member.isfile() or not is_expected:
        raise StateError(f"{name[:80]!r}: no file of a backup; nothing was restored")
    content = tar.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{name} has no content")
    with (folder / name).open("wb") as target:
        shutil.copyfileobj(content, target)
    return digest_of(folder / name)


def _verify(archive: Path, folder: Path, digests: dict[str, str]) -> None:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"{archive}: no backup, or cut short; nothing was restored") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise StateError(
            f"{archive}: written by another version of this program; update it. Nothing was restored"
        )
    digests = {name: digest for name, digest in digests.items() if name != CHECKSUMS}
    # The name of a label volume is its digest.
    volumes = {m[0]: m[1] for m in map(_VOLUME.fullmatch, digests) if m}
    if digests != expected or any(digests[name] != digest for name, digest in volumes.items()):
        raise StateError(f"{archive}: damaged, as its checksums do not match; nothing was restored")


def _records(folder: Path) -> list[dict[str, Any]]:
    try:
        return [
            checked_record(record)
            for record in json.loads((folder / RECORDS).read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError, LookupError) as error:
        raise StateError(f"{RECORDS}: cannot be read ({error}); nothing was restored") from error


def _merge_tables(saved: Database, own: Database) -> int:
    """Add missing rows to tables whose keys are names; add numbered rows to empty tables only."""
    added = 0
    merged: set[str] = set()
    # Label versions and edit costs are merged by meaning, as their ids differ between databases. The records
    # of a PACS are rebuilt by asking it; a label that it has already is not stored twice.
    pacs_tables = (PacsSeries, PacsObject, PacsObjectScans, Delivery)
    skipped = {t.__tablename__ for t in (LabelVersion, EditCost, Meta, *pacs_tables)}
    for table in Base.metadata.sorted_tables:
        if table.name in skipped:
            continue
        (key,) = table.primary_key.columns
        with saved.reading() as session:
            rows = [dict(row._mapping) for row in session.execute(select(table))]
        with own.writing() as session:
            existing = set(session.scalars(select(key)))
            if existing and not isinstance(key.type, String):
                continue
            merged.add(table.name)
            # References to tables that were not merged become null.
            null = [f.parent.name for f in table.foreign_keys if f.column.table.name not in merged]
            new = [row | dict.fromkeys(null) for row in rows if row[key.name] not in existing]
            if new:
                session.execute(insert(table), new)
            added += len(new)
    return added


def _merge_models(folder: Path, model_dir: Path) -> int:
    """Copy the models that are missing here; activate the archive's active one if none is active."""
    added = 0
    for card in sorted(folder.glob("*.json")):
        weights = card.with_suffix(".safetensors")
        if card.name == SERVED or not weights.is_file():
            continue
        if not (model_dir / weights.name).is_file() or not (model_dir / card.name).is_file():
            for file in (weights, card):
                copy_file(file, model_dir / file.name)
            added += 1
    if (folder / SERVED).is_file() and not (model_dir / SERVED).is_file():
        copy_file(folder / SERVED, model_dir / SERVED)
    return added
