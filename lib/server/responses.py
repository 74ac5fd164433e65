"""What goes back to a client: scans, and contours in the forms that the clients ask for."""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

from fastapi import Response
from fastapi.responses import FileResponse
from requests_toolbelt import MultipartEncoder

from lib.imaging.scans import read_ct, read_label, write_ct, write_label
from lib.imaging.volumes import LabelVolume

Output = Literal["all", "image", "json"]
_BYTES = "application/octet-stream"


def scan(path: Path, image_id: str) -> Response:
    """Return a scan as its file; a DICOM folder as NIfTI, which is what the clients can load."""
    if path.is_file():
        return FileResponse(path, media_type=_BYTES, filename=path.name)
    with tempfile.TemporaryDirectory(prefix="organnet-") as folder:
        converted = Path(folder) / f"{image_id}.nii.gz"
        write_ct(converted, read_ct(path, image_id=image_id))
        return _attachment(converted.read_bytes(), converted.name)


def label(path: Path, name: str, *, image_id: str) -> Response:
    """Return a label as NRRD, which a browser can read: the scan's voxels in their order, x fastest."""
    array, grid = read_label(path, image_id=image_id, image_grid=None)
    with tempfile.TemporaryDirectory(prefix="organnet-") as folder:
        written = Path(folder) / f"{name}.nrrd"
        write_label(written, LabelVolume(array, grid, {}))
        return _attachment(written.read_bytes(), written.name)


def contours(result: dict[str, Any], output: Output) -> Response:
    """Return a label and its parameters as the client asked for them, and remove the label's file.

    Slicer asks for both in one answer of several parts, OHIF for the label alone.
    """
    path = Path(result["file"])
    try:
        content, params = path.read_bytes(), json.dumps(result["params"], allow_nan=False)
    finally:
        path.unlink(missing_ok=True)
    if output == "json":
        return Response(params, media_type="application/json")
    if output == "image":
        return _attachment(content, path.name)
    form = MultipartEncoder(
        fields={
            "params": (None, params, "application/json"),
            "image": (path.name, content, _BYTES),
        }
    )
    return Response(form.to_string(), media_type=form.content_type)


def _attachment(content: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=_BYTES, headers=headers)
