"""Labels that must be refused with a reason and put into quarantine; the previous label remains."""

import gzip
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.imaging.geometry import Grid
from tests.segment_files import slicer_fields, write_seg_nrrd
from tests.server.running import Server, put_case, small_ct, two_organs

pytestmark = pytest.mark.server

LABELLED = "bad_labels"


def saved(folder: Path, array: Any, grid: Grid | None = None) -> bytes:
    image: Any = nib.Nifti1Image(array, (grid or small_ct().grid).affine_ras)  # type: ignore[no-untyped-call]
    image.set_sform(image.affine, code=1)
    nib.save(image, folder / "made.nii.gz")
    return (folder / "made.nii.gz").read_bytes()


def good() -> Any:
    return two_organs(small_ct().grid).array


def unknown_value(folder: Path) -> bytes:
    return saved(folder, np.where(good() == 1, 99, good()).astype(np.uint8))


def wrong_grid(folder: Path) -> bytes:
    affine = small_ct().grid.affine_ras
    affine[2, 3] += 3.0
    return saved(folder, good(), Grid.from_affine(small_ct().grid.shape_vox, affine))


def not_a_number(folder: Path) -> bytes:
    array = good().astype(np.float32)
    array[0, 0, 0] = np.nan
    return saved(folder, array)


def probabilities(folder: Path) -> bytes:
    return saved(folder, good().astype(np.float32) / 10)


def whole_floats(folder: Path) -> bytes:
    return saved(folder, good().astype(np.float64))


def four_dimensions(folder: Path) -> bytes:
    return saved(folder, np.stack([good()] * 3, axis=-1))


def web_page(_folder: Path) -> bytes:
    return b"<!DOCTYPE html><html><body>Please log in</body></html>"


def negative(folder: Path) -> bytes:
    return saved(folder, -good().astype(np.int16))


def truncated(folder: Path) -> bytes:
    content = saved(folder, good())
    return content[: len(content) * 2 // 3]


def bomb(shape: tuple[int, int, int], offset: float) -> bytes:
    """Return a compressed file of 4 MB that unpacks to 4 GiB, after a header of that shape."""
    header: Any = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), small_ct().grid.affine_ras).header  # type: ignore[no-untyped-call]
    header.set_sform(small_ct().grid.affine_ras, code=1)
    raw = bytearray(header.binaryblock)
    struct.pack_into("<8h", raw, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<f", raw, 108, offset)
    zeros = gzip.compress(bytes(2**26), compresslevel=9)
    return gzip.compress(bytes(raw) + bytes(4)) + zeros * 64


def bomb_of_voxels(_folder: Path) -> bytes:
    return bomb((1024, 1024, 1024), 352.0)


def bomb_before_the_voxels(_folder: Path) -> bytes:
    return bomb((40, 36, 24), 2.0**32)


def layers(folder: Path) -> bytes:
    """Return two layers with a brainstem and, overlapping most of it, a cord."""
    masks = [(good() == 1).astype(np.uint8)] * 2
    fields = slicer_fields([("Brainstem", 1, 0), ("SpinalCord", 1, 1)])
    return write_seg_nrrd(folder / "x.nrrd", masks, small_ct().grid, fields).read_bytes()


def foreign_names(folder: Path) -> bytes:
    fields = slicer_fields([("Brainstem", 1, 0), ("SpinalCord\u5916\u6269", 4, 0)])
    return write_seg_nrrd(folder / "x.nrrd", [good()], small_ct().grid, fields).read_bytes()


@dataclass(frozen=True, slots=True)
class BadLabel:
    """A label that the server must refuse, and a pattern of the refusal's message."""

    says: str
    make: Callable[[Path], bytes]
    file: str = "label.nii.gz"
    names: tuple[str, ...] = ()


BAD = {
    "an unknown value": BadLabel(r"holds the values \[99\]", unknown_value),
    "an unknown organ": BadLabel(
        "'GTV' is not an organ", lambda f: saved(f, good()), names=("Brainstem", "x", "x", "GTV")
    ),
    "an unknown organ in the file": BadLabel(
        "'SpinalCord\u5916\u6269' is not an organ", foreign_names, "label.seg.nrrd"
    ),
    "names that contradict the file": BadLabel(
        "the file names its segments 'Brainstem', 'SpinalCord', label_info names 'Larynx'",
        layers,
        "label.seg.nrrd",
        names=("Larynx",),
    ),
    "overlapping layers": BadLabel("one of them has the wrong name", layers, "label.seg.nrrd"),
    "a wrong grid": BadLabel("the label lies on .* the image on", wrong_grid),
    "NaN": BadLabel("NaN or fractions", not_a_number),
    "probabilities": BadLabel("NaN or fractions", probabilities),
    "whole numbers as floats": BadLabel("voxels are float64; whole numbers expected", whole_floats),
    "four dimensions": BadLabel("4 dimensions", four_dimensions),
    "negative values": BadLabel("0 to 255 expected", negative),
    "HTML": BadLabel("holds a web page", web_page),
    "a file cut short": BadLabel("truncated", truncated),
    "nothing": BadLabel("empty", lambda _: b""),
    "a program": BadLabel("expected a file ending in", lambda _: b"MZ", "label.exe"),
    "a zip": BadLabel("is not one of", lambda _: b"PK\x03\x04", "label.zip"),
    "a bomb of voxels": BadLabel("the label lies on 1024 x 1024 x 1024", bomb_of_voxels),
    "a bomb before the voxels": BadLabel(
        "4096 MiB before the voxels, 16 MiB at most", bomb_before_the_voxels
    ),
}


def send(server: Server, bad: BadLabel, content: bytes) -> requests.Response:
    info = [{"name": name, "idx": n} for n, name in enumerate(bad.names, start=1)]
    return server.ask(
        "PUT",
        f"/datastore/label?image={LABELLED}",
        data={"params": json.dumps({"label_info": info})},
        files={"label": (bad.file, content)},
    )


@pytest.mark.parametrize("name", BAD)
def test_bad_label_is_refused_and_put_into_quarantine(
    server: Server, tmp_path: Path, name: str
) -> None:
    bad = BAD[name]
    if LABELLED not in server.images():
        put_case(server, LABELLED, is_labelled=True)
    content = bad.make(tmp_path)
    before = server.disk()
    memory = server.process.memory_info().rss
    answer = send(server, bad, content)
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"]
    assert re.search(bad.says, detail), detail
    assert server.disk() == before
    assert server.process.memory_info().rss - memory < 500 * 2**20
    pointer = re.search(r"; kept as quarantine/(\S+)$", detail)
    assert pointer, detail
    newest = server.ask("GET", "/organnet/quarantine").json()[0]
    assert newest["name"] == pointer[1]
    assert (newest["image"], newest["tag"]) == (LABELLED, "final")
    assert re.search(bad.says, newest["reason"])
    quarantined = server.ask("GET", f"/organnet/quarantine/{pointer[1]}")
    assert quarantined.content == content


def test_label_of_an_unknown_image_is_put_into_quarantine(server: Server, tmp_path: Path) -> None:
    sent = {"label": ("label.nii.gz", saved(tmp_path, good()))}
    answer = server.ask("PUT", "/datastore/label?image=unknown", files=sent)
    assert answer.status_code == 404
    assert re.search(r"no such image.*; kept as quarantine/\S+$", answer.json()["detail"])


class Zeros:
    """A file of zeros, generated while `requests` sends it, so that nothing is written to disk."""

    def __init__(self, head: bytes, size: int, tail: bytes) -> None:
        self.parts = [(head, len(head)), (b"", size), (tail, len(tail))]
        self.len = sum(size for _, size in self.parts)

    def __iter__(self) -> Any:
        for content, size in self.parts:
            for _ in range(size // 2**20 if not content else 1):
                yield content or bytes(2**20)


def test_a_label_of_700_mib_is_refused_and_its_beginning_is_put_into_quarantine(
    server: Server,
) -> None:
    put_case(server, "huge", is_labelled=True)
    before = server.disk()
    head = (
        b'--x\r\nContent-Disposition: form-data; name="label"; filename="label.nii"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    body = Zeros(head, 700 * 2**20, b"\r\n--x--\r\n")
    answer = server.ask(
        "PUT",
        "/datastore/label?image=huge",
        data=body,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 422, answer.text
    assert re.search(
        r"exceeds the limit of 512 MiB.*kept as quarantine/\S+$", answer.json()["detail"]
    ), answer.text
    assert server.disk() == before


def test_a_label_of_more_than_2_gib_is_refused_before_it_is_read(server: Server) -> None:
    answer = server.ask(
        "PUT",
        "/datastore/label?image=huge",
        data=b"",
        headers={
            "Content-Length": str(3 * 2**30),
            "Content-Type": "multipart/form-data; boundary=x",
        },
    )
    assert answer.status_code == 413
    assert "limit of 2049 MiB" in answer.json()["detail"]
