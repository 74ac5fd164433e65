"""Requests of a client, and the files that it sends."""

import gzip
import json
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
from tests.waiting import wait_until


def put_scan(server: Server, *image_ids: str, ct: CtVolume) -> None:
    """Upload a scan under several ids, unless it is there."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_ct(path, ct)
        content = path.read_bytes()
    for image_id in sorted(set(image_ids) - set(server.images())):
        sent = {"file": ("scan.nii.gz", content)}
        answer = server.ask("PUT", f"/datastore/?image={image_id}", files=sent)
        assert answer.status_code == 200, answer.text


def wait_until_listed(server: Server, *image_ids: str) -> None:
    """Wait until the server lists scans that were uploaded to another server."""
    wait_until(lambda: set(image_ids) <= set(server.images()), "the server sees the scans")


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
    """Return the label file that the server returns, empty if there is none."""
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

    def status() -> str:
        return str(server.ask("GET", "/train/").json()["status"])

    wait_until(lambda: status() not in ("SUBMITTED", "RUNNING"), "the training ends",
               context=server.end_of_log)  # fmt: skip
    assert status() == "DONE", server.end_of_log()


def as_file(label: LabelVolume, *, level: int = 1) -> bytes:
    """Return a label as a compressed NIfTI of int32 voxels; with `level` 0 it is not compressed."""
    image = nib.Nifti1Image(label.array.astype(np.int32), label.grid.affine_ras)  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), level)


def voxels(content: bytes) -> LabelArray:
    """Return the voxels of a compressed NIfTI.

    Raises:
        Exception: If it is not a NIfTI file or is incomplete.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        path.write_bytes(content)
        image: Any = nib.load(path)
        return np.asarray(image.dataobj).astype(np.uint8)
