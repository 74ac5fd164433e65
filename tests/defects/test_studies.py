"""Safety of the labels in a studies folder: rows 4, 5 and 6."""

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lib.imaging.volumes import LabelVolume
from tests.defects import scans
from tests.defects.client import (
    as_file,
    put_label,
    put_scan,
    saved_label,
    voxels,
    wait_until_listed,
)
from tests.defects.targets import Target
from tests.phantoms import make_grid
from tests.server.running import TINY, Server

pytestmark = pytest.mark.server

LARGE_VOX = (100, 100, 60)


def boxes(seed: int) -> LabelVolume:
    """Return a label of boxes on the large scan."""
    array = np.zeros(LARGE_VOX, np.uint8)
    array[10 + seed : 40, 20:50, 10:40] = 1
    return LabelVolume(array, make_grid(LARGE_VOX), TINY.labels)


def specks(seed: int) -> LabelVolume:
    """Return a label of random voxels, which compression does not make smaller."""
    array = np.random.default_rng(seed).integers(0, 2, scans.SHAPE_VOX).astype(np.uint8)
    return LabelVolume(array, make_grid(scans.SHAPE_VOX), TINY.labels)


def test_row_04_label_is_whole_at_every_moment_while_it_is_overwritten(server: Server) -> None:
    put_scan(server, "overwritten", ct=scans.scan(0, LARGE_VOX))
    contents = [as_file(boxes(seed), level=0) for seed in (0, 1)]
    file = server.studies / "labels" / "final" / "overwritten.nii.gz"
    whole = set()
    for content in contents:
        assert put_label(server, "overwritten", content).status_code == 200
        whole.add(file.stat().st_size)

    def overwrite() -> list[int]:
        return [put_label(server, "overwritten", contents[n % 2]).status_code for n in range(8)]

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(overwrite)
        while not request.done():
            seen.add(file.stat().st_size if file.exists() else -1)
    assert set(request.result()) == {200}
    # What a reader sees at a moment is what a server that is killed at that moment leaves.
    assert seen <= whole


def test_row_04_label_survives_a_full_disk(server: Server) -> None:
    put_scan(server, "full", ct=scans.scan(0))
    old, new = as_file(scans.label(0)), as_file(specks(0))
    with small_disk(server.studies / "labels" / "original") as disk:
        assert put_label(server, "full", old, tag="original").status_code == 200
        fill(disk)
        is_saved = put_label(server, "full", new, tag="original").status_code == 200
        left = saved_label(server, "full", tag="original")
        assert is_whole(left), f"the {len(left)} bytes on disk are not a complete label"
        np.testing.assert_array_equal(voxels(left), voxels(new if is_saved else old))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 256 KB over `folder`; skip the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Fill a disk completely."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def is_whole(content: bytes) -> bool:
    """Return whether a label can be read completely."""
    try:
        voxels(content)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return False
    return True


def test_row_05_two_servers_over_one_folder_keep_each_others_changes(
    target: Target, server: Server, tmp_path: Path
) -> None:
    shared = [f"shared_{number}" for number in range(24)]
    with target.running(tmp_path, studies=server.studies) as second:
        put_scan(server, *shared, ct=scans.scan(0))
        wait_until_listed(second, *shared)
        start = threading.Barrier(2)

        def put_notes(one: Server, image_ids: list[str]) -> set[int]:
            start.wait()
            return {
                one.ask(
                    "PUT",
                    f"/datastore/image/info?image={image_id}",
                    data={"info": json.dumps({"note": f"of {image_id}"})},
                ).status_code
                for image_id in image_ids
            }

        with ThreadPoolExecutor(2) as pool:
            request = [
                pool.submit(put_notes, server, shared[::2]),
                pool.submit(put_notes, second, shared[1::2]),
            ]
            assert {status for one in request for status in one.result()} == {200}
        for one in (server, second):
            objects = one.ask("GET", "/datastore/?output=all").json()["objects"]
            with_note = [i for i in shared if objects[i]["image"]["info"].get("note") == f"of {i}"]
            assert with_note == shared


def bad_labels() -> dict[str, bytes]:
    """Return label files that cannot be used for training."""
    good = scans.label(0)
    holes = good.array.astype(np.float32)
    holes[0, 0, 0] = np.nan
    image = nib.Nifti1Image(holes, good.grid.affine_ras)  # type: ignore[no-untyped-call]
    elsewhere = good.grid.affine_ras
    elsewhere[0, 3] += 5.0
    grid = type(good.grid).from_affine(good.grid.shape_vox, elsewhere)
    return {
        "nothing": b"",
        "garbage": b"\x1f\x8b" + bytes(range(256)) * 8,
        "a web page": b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        "half a file": as_file(good)[:200],
        "not a number": image.to_bytes(),
        "another grid": as_file(boxes(0)),
        "the grid moved": as_file(LabelVolume(good.array, grid, TINY.labels)),
    }


def test_row_06_bad_label_is_refused_and_the_previous_one_remains(server: Server) -> None:
    put_scan(server, "judged", ct=scans.scan(0))
    assert put_label(server, "judged", as_file(scans.label(0))).status_code == 200
    before = saved_label(server, "judged")
    answers = {
        name: put_label(server, "judged", content).status_code
        for name, content in bad_labels().items()
    }
    assert {name: status for name, status in answers.items() if not 400 <= status < 500} == {}
    assert saved_label(server, "judged") == before
