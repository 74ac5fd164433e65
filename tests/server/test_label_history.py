"""Versions of labels over HTTP: their authors, restoring an older one, and files copied in by hand."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lib.imaging.scans import write_label
from lib.imaging.volumes import LabelVolume
from tests.server.running import (
    APP,
    TINY,
    Server,
    parts,
    put_case,
    put_model,
    running,
    small_ct,
    two_organs,
)
from tests.small_disks import fill, small_disk
from tests.waiting import LIMIT_S, wait_until

pytestmark = pytest.mark.server


def label_bytes(folder: Path, shift: int = 0) -> bytes:
    """Return a label as a client would send it; `shift` makes it a different one."""
    label = two_organs(small_ct().grid)
    path = folder / "sent.nii.gz"
    write_label(path, LabelVolume(np.roll(label.array, shift, 0), label.grid, TINY.labels))
    return path.read_bytes()


def submit(server: Server, image_id: str, content: bytes, **params: Any) -> None:
    answer = server.ask(
        "PUT",
        f"/datastore/label?image={image_id}",
        data={"params": json.dumps({"client_id": "slicer", **params})},
        files={"label": ("label.nii.gz", content)},
    )
    assert answer.status_code == 200, answer.text


def history(server: Server, image_id: str, tag: str = "final") -> list[dict[str, Any]]:
    answer = server.ask("GET", f"/organnet/labels/{image_id}?tag={tag}")
    assert answer.status_code == 200, answer.text
    versions: list[dict[str, Any]] = answer.json()
    return versions


def until(server: Server, image_id: str, count: int) -> list[dict[str, Any]]:
    """Wait until the history has `count` versions, and return it."""
    wait_until(lambda: len(history(server, image_id)) == count, f"{image_id} has {count} versions",
               context=lambda: f"{history(server, image_id)}\n{server.end_of_log()}")  # fmt: skip
    return history(server, image_id)


def test_each_submission_is_a_version_and_any_can_be_restored(
    server: Server, tmp_path: Path
) -> None:
    put_case(server, "versions")
    submit(server, "versions", label_bytes(tmp_path))
    first_file = server.ask("GET", "/datastore/label?label=versions&tag=final").content
    submit(server, "versions", label_bytes(tmp_path, 1), model_version="mine")
    first, second = history(server, "versions")
    served = server.ask("GET", "/info/").json()["models"]["organnet25d"]["version"]
    assert first["model_version"] == served
    assert (first["source"], first["client"], first["parent"]) == ("client", "slicer", None)
    assert first["organs"] == ["Brainstem", "Parotid_L"]
    assert (second["number"], second["parent"], second["model_version"]) == (2, 1, "mine")
    for version in (first, second):
        file = server.ask("GET", f"/organnet/labels/versions/{version['number']}").content
        assert hashlib.sha256(file).hexdigest() == version["sha256"]
    back = server.ask("POST", "/organnet/labels/versions/1/restore")
    assert back.status_code == 200, back.text
    assert (back.json()["number"], back.json()["source"]) == (3, "restore")
    assert server.ask("GET", "/datastore/label?label=versions&tag=final").content == first_file
    current = server.ask("GET", "/organnet/labels").json()["labels"]
    assert [v["number"] for v in current if v["image"] == "versions"] == [3]
    page = server.ask("GET", f"/organnet/labels?limit=1&offset={len(current) - 1}").json()
    assert (page["total"], page["labels"]) == (len(current), current[-1:])
    of_one = server.ask("GET", "/organnet/labels?image=versions").json()["labels"]
    assert [(v["image"], v["number"]) for v in of_one] == [("versions", 3)]


def test_a_deleted_label_can_be_restored(server: Server, tmp_path: Path) -> None:
    put_case(server, "deleted")
    submit(server, "deleted", label_bytes(tmp_path))
    assert server.ask("DELETE", "/datastore/label?id=deleted&tag=final").status_code == 200
    assert server.ask("GET", "/datastore/label?label=deleted&tag=final").status_code == 404
    assert [bool(v["hidden_at"]) for v in history(server, "deleted")] == [True]
    assert server.ask("POST", "/organnet/labels/deleted/1/restore").status_code == 200
    assert server.ask("GET", "/datastore/label?label=deleted&tag=final").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/organnet/labels/unknown", 404),
        ("GET", "/organnet/labels/asked/1", 404),
        ("GET", "/organnet/labels/asked?tag=../x", 404),
        ("GET", "/organnet/labels/asked/one", 422),
        ("POST", "/organnet/labels/asked/7/restore", 404),
        ("GET", "/organnet/quarantine/..%2f..%2fworkflow.sqlite", 404),
        ("GET", "/organnet/quarantine/nothing", 404),
    ],
)
def test_unknown_labels_and_versions_are_404(
    server: Server, method: str, path: str, status: int
) -> None:
    put_case(server, "asked")
    assert server.ask(method, path).status_code == status


def test_an_inferred_label_becomes_a_version(server: Server) -> None:
    put_case(server, "inferred")
    form = {"params": json.dumps({"save_label": True, "author": "mallory"})}
    answer = server.ask("POST", "/infer/organnet25d?image=inferred", data=form)
    assert answer.status_code == 200, answer.text
    (version,) = history(server, "inferred", "original")
    assert (version["source"], version["author"]) == ("infer", "")
    assert version["model_version"]
    # The answer says what was stored, in every form: JSON beside the label, JSON alone, a header.
    saved = {key: version[key] for key in ("tag", "number", "changes", "doubts")}
    assert json.loads(parts(answer)["params"][1])["saved_label"] == saved
    for output in ("json", "image"):
        answer = server.ask("POST", f"/infer/organnet25d?image=inferred&output={output}", data=form)
        version = history(server, "inferred", "original")[-1]
        content = answer.json() if output == "json" else {}
        said = content.get("saved_label") or json.loads(answer.headers["X-OrganNet-Saved-Label"])
        assert said == {key: version[key] for key in ("tag", "number", "changes", "doubts")}
    unsaved = server.ask("POST", "/infer/organnet25d?image=inferred&output=image")
    assert "X-OrganNet-Saved-Label" not in unsaved.headers


def test_files_copied_into_the_folder_are_adopted_or_listed(server: Server, tmp_path: Path) -> None:
    put_case(server, "by_hand", is_labelled=True)
    (first,) = history(server, "by_hand")
    assert first["source"] == "folder"
    path = server.studies / "labels" / "final" / "by_hand.nii.gz"
    path.write_bytes(label_bytes(tmp_path, 3))
    second = until(server, "by_hand", 2)[1]
    assert second["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"<html>")
    os.utime(path, (1e9, 1e9))
    refused: list[dict[str, str]] = wait_until(
        lambda: server.ask("GET", "/organnet/labels").json()["refused"], "the file is refused"
    )
    assert [(r["image"], r["file"]) for r in refused] == [("by_hand", "by_hand.nii.gz")]
    assert "web page" in refused[0]["reason"]
    label = server.ask("GET", "/datastore/label?label=by_hand&tag=final").content
    assert hashlib.sha256(label).hexdigest() == second["sha256"]
    submit(server, "by_hand", label_bytes(tmp_path))
    assert not server.ask("GET", "/organnet/labels").json()["refused"]


def backup(server: Server, command: str, *given: str) -> None:
    """Run the backup program while the server is running."""
    line = [sys.executable, "-m", "apps.backup", command, "--studies", str(server.studies),
            "--model-dir", str(server.models), *given]  # fmt: skip
    done = subprocess.run(line, cwd=APP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_backup_is_restored_into_a_folder_whose_server_runs(
    server: Server, tmp_path: Path
) -> None:
    put_case(server, "saved")
    submit(server, "saved", label_bytes(tmp_path))
    first = server.ask("GET", "/datastore/label?label=saved&tag=final").content
    archive = str(tmp_path / "backup.tar.gz")
    backup(server, "create", "--output", archive)
    with running(tmp_path) as other:
        put_case(other, "saved")
        backup(other, "restore", "--input", archive)
        other.wait_for_label("saved")
        assert other.ask("GET", "/datastore/label?label=saved&tag=final").content == first
        assert history(other, "saved") == history(server, "saved")
        submit(other, "saved", label_bytes(tmp_path, 1))
        second = other.ask("GET", "/datastore/label?label=saved&tag=final").content
        backup(other, "restore", "--input", archive)
        assert [v["number"] for v in history(other, "saved")] == [1, 2]
        assert other.ask("GET", "/datastore/label?label=saved&tag=final").content == second


def test_a_full_disk_is_507_and_a_killed_server_recovers_all_labels(
    tmp_path: Path,
) -> None:
    (tmp_path / "models").mkdir()
    put_model(tmp_path / "models")
    with small_disk(tmp_path / "studies", mib=8):
        with running(tmp_path) as server:
            put_case(server, "full")
            submit(server, "full", label_bytes(tmp_path))
            before = server.ask("GET", "/datastore/label?label=full&tag=final").content
            info = server.ask("GET", "/datastore/image/info?image=full").json()
            filler = fill(server.studies)
            answer = server.ask(
                "PUT",
                "/datastore/label?image=full",
                files={"label": ("l.nii.gz", label_bytes(tmp_path, 1))},
            )
            assert answer.status_code == 507, answer.text
            assert "every label before it is" in answer.json()["detail"]
            assert server.ask("PUT", "/datastore/image/info?image=full").status_code in (200, 507)
            now = server.ask("GET", "/datastore/image/info?image=full").json()
            assert now.items() >= info.items()
            again = server.ask("GET", "/datastore/label?label=full&tag=final")
            assert (again.status_code, again.content) == (200, before)
            assert len(history(server, "full")) == 1
            assert server.ask("POST", "/infer/organnet25d?image=full").status_code == 200
            filler.unlink()
            submit(server, "full", label_bytes(tmp_path, 1))
            server.process.kill()
            server.process.wait(LIMIT_S)
        with running(tmp_path) as server:
            assert [v["number"] for v in history(server, "full")] == [1, 2]
            server.wait_for_label("full")
