"""What a viewer stores: contours become labels here, everything else goes on to the PACS (defect 25).

A DICOM SEG or RTSTRUCT that is drawn on a series of ours is a submitted label, checked and kept as one. It is
not passed on: this server brings its own SEG of the label to the PACS. So an object is either a label here, or
in the PACS, or refused.
"""

import logging
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from monailabel.interfaces.utils.app import app_instance
from pydicom.dataset import Dataset
from starlette.concurrency import run_in_threadpool

from lib.dicom import stow
from lib.dicom.stow import ObjectId, StoreResult
from lib.errors import LabelError, OrganNetError, PacsError, ScanError, StorageFullError
from lib.server.dicomweb import proxy
from lib.server.dicomweb.multipart import Part, receive_parts
from lib.server.uploads import MAX_LABEL_BYTES
from lib.storage.atomic_files import is_disk_full

logger = logging.getLogger(__name__)

CONTOURS = frozenset({stow.SEG, stow.RTSTRUCT})
_CHUNK_BYTES = 2**20
_VIEWER = "ohif"
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DICOM_TYPES = frozenset({"", "application/dicom", "application/octet-stream"})


@dataclass(frozen=True, slots=True)
class Sender:
    """Who stores something.

    Attributes:
        author: Who logged in, empty where nobody does.
        client: The program, and which browser it runs in.
    """

    author: str
    client: str


def client_of(headers: Mapping[str, str]) -> str:
    """Return what a viewer calls itself in a request: where nobody logs in, readers are told apart by it."""
    called = headers.get("x-organnet-client", "")
    return called if _CLIENT.fullmatch(called) else _VIEWER


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An object for the PACS."""

    path: Path
    object_id: ObjectId


async def store(
    pieces: AsyncIterator[bytes], content_type: str, *, study_uid: str, sender: Sender
) -> list[StoreResult]:
    """Store each object of a request, and return what became of it.

    Args:
        pieces: The request's body.
        content_type: Of the body: multipart/related.
        study_uid: The one study whose objects are taken; empty to take any.
        sender: Who sends it.

    Raises:
        ConfigError: If the body is no whole multipart message.
        PacsError: If all of it is for the PACS, which does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="organnet-upload-") as folder:
        parts = await receive_parts(pieces, content_type, Path(folder))
        outcomes: list[StoreResult] = []
        waiting: list[_Waiting] = []
        for part in parts:
            done = await run_in_threadpool(_take, part, study_uid, sender)
            if isinstance(done, StoreResult):
                outcomes.append(done)
            else:
                waiting.append(done)
        if waiting:
            try:
                outcomes += await _pass_on(waiting, study_uid)
            except PacsError as error:
                if not outcomes:
                    raise
                outcomes += [_failed(one.object_id, error) for one in waiting]
        return outcomes


def _take(part: Part, study_uid: str, sender: Sender) -> StoreResult | _Waiting:
    """Return what became of a part, or that it is for the PACS."""
    object_id: ObjectId | None = None
    try:
        if part.media_type not in _DICOM_TYPES:
            raise ScanError(f"expected application/dicom, found {part.media_type[:80]!r}")
        object_id = stow.read_object_id(part.path)
        if study_uid and object_id.study_uid != study_uid:
            comment = f"the object is of another study than {study_uid}, to which it was sent"
            return StoreResult(object_id=object_id, comment=comment, failure=stow.DOES_NOT_MATCH)
        kept = _label(part.path, sender) if object_id.sop_class_uid in CONTOURS else None
    except OrganNetError as error:
        return _failed(object_id, error)
    except OSError as error:
        if not is_disk_full(error):
            raise
        full = StorageFullError("the disk is full; everything that was stored is untouched")
        return _failed(object_id, full)
    if kept is None:
        return _Waiting(part.path, object_id)
    return StoreResult(object_id=object_id, comment=_told(kept))


def _label(path: Path, sender: Sender) -> Any:
    """Return the version that contours became; None where they are drawn on no series of ours.

    Raises:
        OrganNetError: If they are refused.
    """
    if path.stat().st_size > MAX_LABEL_BYTES:
        limit = MAX_LABEL_BYTES // 2**20
        raise LabelError(f"the contours take more than {limit} MiB, more than they can")
    app = app_instance()
    version = app.import_dicom(path, author=sender.author, client=sender.client)
    if version is not None:
        app.on_save_label(version.image_id, version.image_id)
    return version


def _told(version: Any) -> str:
    """Return what to tell whoever submitted a label that is kept."""
    organs = ", ".join(version.organs) or "no organ"
    remarks = app_instance().submission_warnings(version)
    said = f"kept as version {version.number}, with {organs}; the case counts as labelled"
    if remarks["left_out"]:
        said += f". Not in it, but in the version before: {', '.join(remarks['left_out'])}"
    return said + "".join(f". Doubt: {doubt}" for doubt in remarks["doubts"])


def _failed(object_id: ObjectId | None, error: OrganNetError) -> StoreResult:
    logger.warning("not stored: %s", error)
    if isinstance(error, StorageFullError):
        failure = stow.OUT_OF_RESOURCES
    elif isinstance(error, ScanError) and object_id is None:
        failure = stow.CANNOT_UNDERSTAND
    else:
        failure = stow.PROCESSING_FAILURE
    return StoreResult(object_id=object_id, comment=str(error), failure=failure)


async def _pass_on(waiting: Sequence[_Waiting], study_uid: str) -> list[StoreResult]:
    """Send objects to the PACS in one request, and return what it did with each.

    Raises:
        PacsError: If it does not answer, fails, or answers something else.
    """
    boundary = uuid.uuid4().hex
    heads = [f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()] * len(waiting)
    tail = f"\r\n--{boundary}--\r\n".encode()
    sizes = [one.path.stat().st_size for one in waiting]
    headers = {
        "accept": "application/dicom+json",
        "content-type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "content-length": str(sum(map(len, heads)) + sum(sizes) + len(tail)),
    }
    path = f"studies/{study_uid}" if study_uid else "studies"
    body = _body(heads, [one.path for one in waiting], tail)
    request = proxy.client().build_request(
        "POST", httpx.URL(proxy.address("stow", path)), headers=headers, content=body
    )
    answer = await proxy.send(request)
    try:
        content = await answer.aread()
    except httpx.HTTPError as error:
        raise PacsError("the PACS stopped in the middle of its answer; send it again") from error
    finally:
        await answer.aclose()
    verdicts = _verdicts(content)
    return [_outcome(one.object_id, verdicts) for one in waiting]


async def _body(heads: Iterable[bytes], paths: Iterable[Path], tail: bytes) -> AsyncIterator[bytes]:
    for head, path in zip(heads, paths, strict=True):
        yield head
        with path.open("rb") as file:
            while piece := await run_in_threadpool(file.read, _CHUNK_BYTES):
                yield piece
    yield tail


def _verdicts(content: bytes) -> dict[str, int | None]:
    """Return, by SOP Instance UID, why the PACS did not store an object; None where it did."""
    try:
        response = stow.decoded(content)
    except ScanError as error:
        raise PacsError(f"the PACS's answer to a store is none: {error}") from error
    stored: Iterable[Dataset] = response.get("ReferencedSOPSequence") or ()
    failed: Iterable[Dataset] = response.get("FailedSOPSequence") or ()
    verdicts: dict[str, int | None] = {str(one.ReferencedSOPInstanceUID): None for one in stored}
    for one in failed:
        reason = int(one.get("FailureReason") or stow.PROCESSING_FAILURE)
        verdicts[str(one.ReferencedSOPInstanceUID)] = reason
    return verdicts


def _outcome(object_id: ObjectId, verdicts: dict[str, int | None]) -> StoreResult:
    failure = verdicts.get(object_id.sop_instance_uid, stow.PROCESSING_FAILURE)
    if failure is None:
        return StoreResult(object_id=object_id, comment="stored in the PACS")
    return StoreResult(object_id=object_id, comment="the PACS did not store it", failure=failure)
