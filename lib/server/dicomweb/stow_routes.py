"""Route for DICOM objects that a viewer stores: contours become labels here, all other objects go to the PACS.

A DICOM SEG or RTSTRUCT that was drawn on a series of this server is a submitted label and is validated as one
(defect 25). It is not passed on: this server sends its own SEG of the label to the PACS. So an object is either
a label here, or in the PACS, or refused.
"""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import httpx
from fastapi import APIRouter, HTTPException, Request, Response
from monailabel.endpoints.user.auth import User
from pydicom.dataset import Dataset
from starlette.concurrency import run_in_threadpool

from lib.dicom import stow
from lib.dicom.stow import ObjectId, StoreResult
from lib.errors import LabelError, OrganNetError, PacsError, ScanError, StorageFullError
from lib.imaging.dicom_files import PARSING_ERRORS, is_damage
from lib.server.access import ANNOTATOR, author_of, organs_left_out
from lib.server.dicomweb import proxy_routes as proxy
from lib.server.multipart import Part, receive_parts
from lib.server.requests import MAX_LABEL_BYTES
from lib.server.running_app import get_app
from lib.storage.leftovers import scratch_folder
from lib.storage.storage_errors import is_disk_full
from lib.storage.tables import LabelVersion

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)

Submit = Callable[[Path], LabelVersion | None]

CONTOURS = frozenset({stow.SEG, stow.RTSTRUCT})
_CHUNK_BYTES = 2**20
_DEFAULT_CLIENT = "ohif"
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DICOM_TYPES = frozenset({"", "application/dicom", "application/octet-stream"})
_STUDIES = re.compile(r"studies(?:/([0-9.]{1,64}))?")


def client_of(headers: Mapping[str, str]) -> str:
    """Return the client id that a viewer sends; it identifies readers without authentication."""
    client = headers.get("x-organnet-client", "")
    return client if _CLIENT.fullmatch(client) else _DEFAULT_CLIENT


# Decorators are applied from the bottom up, so the most general path is registered last.
@router.post("/{path:path}")
@router.post("/stow/{path:path}")
@router.post("/qido/{path:path}")
@router.post("/wado/{path:path}")
async def store(request: Request, path: str, user: User = ANNOTATOR) -> Response:
    """Store contours as labels, and pass all other objects on to the PACS (STOW-RS, PS3.18 section 10.5)."""
    plain = proxy.require_path(path, request.scope.get("raw_path") or b"")
    study = _STUDIES.fullmatch(plain)
    if study is None:
        raise HTTPException(405, "objects can only be stored to /studies or /studies/STUDY")
    content_type = request.headers.get("content-type", "")
    kind = content_type.lower().replace('"', "")
    if not kind.startswith("multipart/related") or "application/dicom+" in kind:
        raise HTTPException(
            415, 'expected multipart/related; type="application/dicom" with DICOM objects'
        )
    submit = partial(_submit, author=author_of(user), client=client_of(request.headers))
    results = await store_objects(
        request.stream(), content_type, study_uid=study[1] or "", submit=submit
    )
    content, media_type = stow.encode_response(
        stow.response_dataset(results), request.headers.get("accept", "")
    )
    return Response(content, stow.http_status(results), media_type=media_type)


async def store_objects(
    chunks: AsyncIterator[bytes], content_type: str, *, study_uid: str, submit: Submit
) -> list[StoreResult]:
    """Store each object of a request, and return the result of each.

    Args:
        chunks: The request's body.
        content_type: Content-Type of the body: multipart/related.
        study_uid: The only study whose objects are accepted; empty for all.
        submit: Submits a file with contours (`_submit`).

    Raises:
        ConfigError: If the body is not a complete multipart message.
        PacsError: If all objects are for the PACS, and it does not accept them.
    """
    with scratch_folder() as folder:
        parts = await receive_parts(chunks, content_type, folder)
        results: list[StoreResult] = []
        for_pacs: dict[Path, ObjectId] = {}
        for part in parts:
            result = await run_in_threadpool(_store_if_contours, part, study_uid, submit)
            if isinstance(result, StoreResult):
                results.append(result)
            else:
                for_pacs[part.path] = result
        if for_pacs:
            try:
                results += await _send_to_pacs(for_pacs, study_uid)
            except PacsError as error:
                if not results:
                    raise
                results += [_failure(object_id, error) for object_id in for_pacs.values()]
        return results


def _store_if_contours(part: Part, study_uid: str, submit: Submit) -> StoreResult | ObjectId:
    """Store contours as a label; return the ids of an object that is for the PACS."""
    object_id: ObjectId | None = None
    try:
        if part.media_type not in _DICOM_TYPES:
            raise ScanError(f"expected application/dicom, found {part.media_type[:80]!r}")
        object_id = stow.read_object_id(part.path)
        if study_uid and object_id.study_uid != study_uid:
            comment = f"the object belongs to another study than {study_uid}, to which it was sent"
            return StoreResult(object_id=object_id, comment=comment, failure=stow.DOES_NOT_MATCH)
        is_contours = object_id.sop_class_uid in CONTOURS
        version = submit(part.path) if is_contours else None
    except (OrganNetError, *PARSING_ERRORS) as error:
        return _failure(object_id, _as_refusal(error))
    if version is None:
        return object_id
    return StoreResult(object_id=object_id, comment=_comment(version))


def _as_refusal(error: Exception) -> OrganNetError:
    """Return the refusal of an object; raise an error that is not about the object."""
    if isinstance(error, OrganNetError):
        return error
    if is_disk_full(error):
        return StorageFullError("the disk is full; stored data is unchanged")
    if not is_damage(error):
        raise error
    # pydicom converts a value when it is first used, so that damage can show anywhere.
    logger.warning("a damaged object", exc_info=error)
    return LabelError(f"the object is damaged ({error}); export it again")


def _submit(path: Path, *, author: str, client: str) -> LabelVersion | None:
    """Submit contours as a label; None if they were drawn on a series that this server does not have.

    Raises:
        OrganNetError: If they are refused.
    """
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise LabelError(f"the object exceeds the limit of {MAX_LABEL_BYTES // 2**20} MiB")
    importer = get_app().dicom_importer
    if importer is None:
        return None
    return importer.import_submitted(path, author=author, client=client)


def _comment(version: LabelVersion) -> str:
    """Return the message about a submitted label, for the annotator."""
    organs = ", ".join(version.organs) or "no organ"
    left_out = organs_left_out(get_app(), version)
    comment = f"kept as version {version.number}, with {organs}; the case counts as labelled"
    if left_out:
        comment += f". Missing, but present in the previous version: {', '.join(left_out)}"
    comment += "".join(f". Changed: {change}" for change in version.changes)
    return comment + "".join(f". Doubt: {doubt}" for doubt in version.doubts)


def _failure(object_id: ObjectId | None, error: OrganNetError) -> StoreResult:
    logger.warning("not stored: %s", error)
    if isinstance(error, StorageFullError):
        failure = stow.OUT_OF_RESOURCES
    elif isinstance(error, ScanError) and object_id is None:
        failure = stow.CANNOT_UNDERSTAND
    else:
        failure = stow.PROCESSING_FAILURE
    return StoreResult(object_id=object_id, comment=str(error), failure=failure)


async def _send_to_pacs(objects: Mapping[Path, ObjectId], study_uid: str) -> list[StoreResult]:
    """Send the files of objects to the PACS in one request, and return the result of each.

    Raises:
        PacsError: If the PACS does not answer, fails, or answers something else; always if the studies are in a
            folder.
    """
    if get_app().folder_pacs is not None:
        raise PacsError(
            "this server's studies are in a folder: only a SEG or RTSTRUCT with its organs, drawn on one of "
            "its scans, is stored here, as a label; store other objects with the program that they came from"
        )
    boundary = uuid.uuid4().hex
    heads = [f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()] * len(objects)
    tail = f"\r\n--{boundary}--\r\n".encode()
    sizes = [path.stat().st_size for path in objects]
    headers = {
        "accept": "application/dicom+json",
        "content-type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "content-length": str(sum(map(len, heads)) + sum(sizes) + len(tail)),
    }
    address = proxy.address("stow", f"studies/{study_uid}" if study_uid else "studies")
    body = _body(heads, objects, tail)
    request = proxy.client().build_request("POST", address, headers=headers, content=body)
    answer = await proxy.send(request)
    try:
        content = await answer.aread()
    except httpx.HTTPError as error:
        raise PacsError("the PACS broke off its answer; send the objects again") from error
    finally:
        await answer.aclose()
    failures = _failures(content)
    return [_pacs_result(object_id, failures) for object_id in objects.values()]


async def _body(heads: Iterable[bytes], paths: Iterable[Path], tail: bytes) -> AsyncIterator[bytes]:
    for head, path in zip(heads, paths, strict=True):
        yield head
        with path.open("rb") as file:
            while chunk := await run_in_threadpool(file.read, _CHUNK_BYTES):
                yield chunk
    yield tail


def _failures(content: bytes) -> dict[str, int | None]:
    """Return SOP Instance UID -> Failure Reason (0008,1197); None for a stored object."""
    try:
        response = stow.decode_response(content)
    except ScanError as error:
        raise PacsError(f"the PACS returned an invalid STOW-RS response: {error}") from error
    stored: Iterable[Dataset] = response.get("ReferencedSOPSequence") or ()
    failed: Iterable[Dataset] = response.get("FailedSOPSequence") or ()
    failures: dict[str, int | None] = {str(item.ReferencedSOPInstanceUID): None for item in stored}
    for item in failed:
        reason = int(item.get("FailureReason") or stow.PROCESSING_FAILURE)
        failures[str(item.ReferencedSOPInstanceUID)] = reason
    return failures


def _pacs_result(object_id: ObjectId, failures: Mapping[str, int | None]) -> StoreResult:
    failure = failures.get(object_id.sop_instance_uid, stow.PROCESSING_FAILURE)
    if failure is None:
        return StoreResult(object_id=object_id, comment="stored in the PACS")
    return StoreResult(object_id=object_id, comment="the PACS did not store it", failure=failure)
