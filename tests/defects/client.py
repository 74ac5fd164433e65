"""What a client asks, and the files that it sends."""

import gzip
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import requests

from lib.imaging.quantities import LabelArray
from lib.imaging.scans import write_ct
from lib.imaging.volumes import CtVolume, LabelVolume
from tests.server.running import Server

TRAINING_LIMIT_S = 300
SEEN_LIMIT_S = 60


def put_scan(server: Server, *image_ids: str, ct: CtVolume) -> None:
    """Upload a scan under some names, unless it is there."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_ct(path, ct)
        content = path.read_bytes()
    for image_id in sorted(set(image_ids) - set(server.images())):
        sent = {"file": ("scan.nii.gz", content)}
        answer = server.ask("PUT", f"/datastore/?image={image_id}", files=sent)
        assert answer.status_code == 200, answer.text


def wait_until_listed(server: Server, *image_ids: str) -> None:
    """Wait until a server has seen the scans that another one was given."""
    limit = time.monotonic() + SEEN_LIMIT_S
    while not set(image_ids) <= set(server.images()):
        assert time.monotonic() < limit, "the server does not see the scans"
        time.sleep(0.2)


def put_label(
    server: Server, image_id: str, content: bytes, *, tag: str = "final"
) -> requests.Response:
    """Save a label file."""
    return server.ask(
        "PUT",
        f"/datastore/label?image={image_id}&tag={tag}",
        files={"label": ("label.nii.gz", content)},
    )


def saved_label(server: Server, image_id: str, *, tag: str = "final") -> bytes:
    """Return the label file that the server hands out, nothing where it has none."""
    answer = server.ask("GET", f"/datastore/label?label={image_id}&tag={tag}")
    return answer.content if answer.status_code == 200 else b""


def infer(server: Server, model: str, image_id: str, **params: float) -> requests.Response:
    """Contour an image of the store."""
    return server.ask(
        "POST",
        f"/infer/{model}?image={image_id}&output=image",
        data={
            "params": json.dumps({"result_extension": ".nii.gz", "result_dtype": "uint8", **params})
        },
    )


def train(server: Server, model: str, epochs: int) -> None:
    """Train, and wait for the end."""
    started = server.ask("POST", f"/train/{model}", json={"max_epochs": epochs})
    assert started.status_code == 200, started.text
    limit = time.monotonic() + TRAINING_LIMIT_S
    status = "SUBMITTED"
    while status in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < limit, "the training does not end"
        time.sleep(0.5)
        status = server.ask("GET", "/train/").json()["status"]
    assert status == "DONE", server.log.read_text()[-4000:]


def as_file(label: LabelVolume, *, level: int = 1) -> bytes:
    """Return a label as a compressed NIfTI; at `level` 0 as large as its voxels, four bytes each."""
    image = nib.Nifti1Image(label.array.astype(np.int32), label.grid.affine_ras)  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), level)


def voxels(content: bytes) -> LabelArray:
    """Return what lies in a compressed NIfTI.

    Raises:
        Exception: If it is none, or not whole.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        path.write_bytes(content)
        image: Any = nib.load(path)
        return np.asarray(image.dataobj).astype(np.uint8)
