"""Labels as DICOM objects: what the CT must be for that, and the answer to a client."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import Response
from pydicom.dataset import FileDataset

from lib.dicom.about import ObjectProvenance
from lib.dicom.objects import Kind, write_object
from lib.errors import ConfigError
from lib.imaging.dicom_series import read_headers, require_series
from lib.imaging.scans import read_label
from lib.imaging.volumes import LabelVolume
from lib.pacs_sync.dicom_export import MODEL
from lib.server.requests import as_flag

MEDIA_TYPE = "application/dicom"


def inferred(app: Any, request: Mapping[str, Any], kind: Kind) -> Response:
    """Return what the model contours in a DICOM series as a DICOM object.

    Args:
        app: The running app.
        request: As `app.infer` takes it.
        kind: Of the object.

    Raises:
        ScanError: If the image is no DICOM series; nothing was contoured then.
        ConfigError: If the request asks for a map in place of the label.
        LabelError: If the model found no organ.
    """
    image_id = str(request["image"])
    if as_flag("uncertainty_map", request.get("uncertainty_map", False)):
        raise ConfigError(
            "uncertainty_map: the map is no label, and has no form as SEG or RTSTRUCT"
        )
    scan = request.get("scan")
    folder = require_series(Path(scan) if scan else app.image_path(image_id), image_id)
    result = app.infer({**request, "result_extension": ".nii.gz", "result_dtype": "uint8"})
    params = result["params"]
    about = ObjectProvenance(
        model=MODEL,
        model_version=str(params["model_version"]),
        is_automatic=True,
        description="OrganNet Label prediction",
    )
    file = Path(result["file"])
    try:
        headers, _ = read_headers(folder, image_id=image_id)
        return answer(kind, file, params["label_names"], headers, about, image_id=image_id)
    finally:
        file.unlink(missing_ok=True)


def answer(
    kind: Kind,
    file: Path,
    labels: Mapping[str, int],
    headers: Sequence[FileDataset],
    about: ObjectProvenance,
    *,
    image_id: str,
    name: str = "",
) -> Response:
    """Return a label's file as a DICOM object.

    Args:
        kind: Of the object.
        file: The label.
        labels: TG-263 name -> value in it.
        headers: Of the DICOM series that it was drawn on.
        about: What the object says of itself.
        image_id: For messages.
        name: Of the object's file, without its suffix; that of the image by default.
    """
    array, label_grid = read_label(file, image_id=image_id, image_grid=None)
    with tempfile.TemporaryDirectory(prefix="organnet-") as scratch:
        path = Path(scratch) / "object.dcm"
        label = LabelVolume(array, label_grid, labels)
        write_object(kind, path, label, headers, about, image_id=image_id)
        content = path.read_bytes()
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name or image_id)
    shown = {"Content-Disposition": f'attachment; filename="{stem}.{kind}.dcm"'}
    return Response(content, media_type=MEDIA_TYPE, headers=shown)
