"""The routes to the PACS, for OHIF: search, retrieve, store; nothing is deleted or overwritten through them.

The addresses are MONAI Label's, which the viewer's configuration names.
"""

import re

from fastapi import APIRouter, HTTPException, Request, Response
from monailabel.endpoints.user.auth import User

from lib.dicom.stow import encoded, response_dataset, status_of
from lib.server.dicomweb import proxy, stow_requests
from lib.server.roles import ANNOTATOR, USER, author_of

router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)

_STUDIES = re.compile(r"studies(?:/([0-9.]{1,64}))?")
_UNSUPPORTED = 415
_NOT_ALLOWED = 405


# These wait for the PACS, not for a processor: they are asynchronous, and hold no thread meanwhile.
@router.get("/wado/{path:path}")
async def retrieve(request: Request, path: str, _user: User = USER) -> Response:
    """Return objects, their metadata, frames or bulk data (WADO-RS)."""
    return await proxy.retrieve(request, "wado", path)


@router.get("/qido/{path:path}")
async def search(request: Request, path: str, _user: User = USER) -> Response:
    """Return studies, series or instances that fit the query (QIDO-RS)."""
    return await proxy.retrieve(request, "qido", path)


@router.get("/{path:path}")
async def either(request: Request, path: str, _user: User = USER) -> Response:
    """Return what the PACS has at a path, without any service's prefix."""
    return await proxy.retrieve(request, "", path)


# Decorators work from below: the address that fits all others comes last.
@router.post("/{path:path}")
@router.post("/stow/{path:path}")
@router.post("/qido/{path:path}")
@router.post("/wado/{path:path}")
async def store(request: Request, path: str, user: User = ANNOTATOR) -> Response:
    """Take contours as labels, and pass everything else on to the PACS (STOW-RS, PS3.18 section 10.5)."""
    plain = proxy.require_path(path, request.scope.get("raw_path") or b"")
    found = _STUDIES.fullmatch(plain)
    if found is None:
        raise HTTPException(_NOT_ALLOWED, "only studies, or one study, can be stored to")
    content_type = request.headers.get("content-type", "")
    kind = content_type.lower().replace('"', "")
    if not kind.startswith("multipart/related") or "application/dicom+" in kind:
        raise HTTPException(
            _UNSUPPORTED, 'expected multipart/related; type="application/dicom" with DICOM objects'
        )
    sender = stow_requests.Sender(author_of(user), stow_requests.client_of(request.headers))
    outcomes = await stow_requests.store(
        request.stream(), content_type, study_uid=found[1] or "", sender=sender
    )
    content, media_type = encoded(response_dataset(outcomes), request.headers.get("accept", ""))
    return Response(content, status_of(outcomes), media_type=media_type)
