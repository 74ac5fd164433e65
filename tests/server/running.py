"""Functions to run a real server in its own process, put scans into it, and inspect its files."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import torch
import yaml
from requests_toolbelt import MultipartDecoder

from lib.imaging.geometry import Grid
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.models.registry import Registry, save_model
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP, NetworkConfig, Recipe, ScheduleConfig
from lib.storage.database import FILE
from lib.storage.leftovers import UNFINISHED
from tests.phantoms import make_ct, make_grid
from tests.waiting import LIMIT_S, wait_until

APP = Path(__file__).parents[2]
ANSWER_LIMIT_S = LIMIT_S

TINY = replace(
    OPENKBP,
    name="tiny",
    spacing_mm=(3.0, 4.0, 6.0),
    crop_vox=(16, 16, 16),
    network=NetworkConfig(width=1),
    schedule=ScheduleConfig(epochs=2, steps_per_epoch=2, batch_size=1, validate_every=2),
)
"""A recipe that learns nothing, but runs every step of a training within a moment."""


UNDISTURBED = {
    "auto_retrain": "off",
    "backend": "eager",
    "doubted_may_judge": "on",
    "retrain_epochs": "2",
    "scoring": "off",
}
"""Settings without background work: trainings start only on request, and no images are scored."""
ANYTHING_GOES = {"min_first_dsc": "0", "promotion_margin": "1", "max_organ_drop": "1"}
"""Promotion rules under which any model is promoted, even one that learned nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: URL without a slash at its end.
        studies: The studies folder.
        models: The folder of the model registry.
        scratch: The folder for temporary files.
        log: The file of its output.
        http: Session for requests to it.
        process: Its process.
    """

    url: str
    studies: Path
    models: Path
    scratch: Path
    log: Path
    http: requests.Session
    process: psutil.Popen

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Return the answer to one request."""
        return self.http.request(method, self.url + path, timeout=ANSWER_LIMIT_S, **options)

    def disk(self) -> dict[str, str]:
        """Return path -> digest of every file that the server could have changed.

        Quarantined files are excluded, uncertainty maps of predictions, and the database: the scheduler assigns
        new cases to sets at any time. What the database states about labels is also in files beside them.
        """
        roots = (self.studies, self.models, self.scratch, self.scratch.with_name("sessions"))
        # A request is answered before the files that it needed are removed.
        wait_until(
            lambda: (
                not any(
                    name.startswith(UNFINISHED)
                    for root in roots
                    for _, folders, files in os.walk(root)
                    for name in (*folders, *files)
                )
            ),
            "the server has removed its temporary files",
            context=self.end_of_log,
        )
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for root in roots
            for path in sorted(root.rglob("*"))
            if not {"quarantine", "predictions"} & set(path.parts)
            and not path.name.startswith(FILE)
        }

    def wait_for_label(self, image_id: str, *, tag: str = "final") -> None:
        """Wait until the server has adopted a label file that was copied into the studies folder."""
        query = f"/datastore/label?image={image_id}&tag={tag}"
        wait_until(
            lambda: self.ask("HEAD", query).status_code == 200,
            f"the label of {image_id} is adopted",
            context=self.end_of_log,
        )

    def end_of_log(self) -> str:
        """Return the last lines of the server's log."""
        return self.log.read_text()[-4000:]

    def images(self) -> list[str]:
        """Return the ids of the store's images."""
        return sorted(self.ask("GET", "/datastore/?output=all").json()["objects"])


@contextmanager
def running(
    folder: Path,
    *,
    conf: Mapping[str, str] | None = None,
    app: Path = APP,
    studies: Path | str | None = None,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "monailabel.main"),
) -> Iterator[Server]:
    """Yield a server over `folder`/studies and `folder`/models, and end it with all its child processes.

    Args:
        folder: Its working folder, which also holds the log.
        conf: Settings in addition to the defaults of these tests.
        app: The app's folder.
        studies: A studies folder shared with another server, or the URL of a PACS.
        environment: Environment variables in addition to those of this process.
        command: The start command of MONAI Label; by default a process forked by `tests.forked_processes`.
    """
    working_folders = {name: folder / name for name in ("studies", "models", "scratch", "sessions")}
    if isinstance(studies, Path):
        working_folders["studies"] = studies
    for folder_path in working_folders.values():
        folder_path.mkdir(exist_ok=True)
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY.as_dict()))
    settings = {"model_dir": str(working_folders["models"]), "starter_dir": str(folder / "none"),
                "recipe": str(recipe), "device": "cpu", **UNDISTURBED, **(conf or {})}  # fmt: skip
    port = _free_port()
    programs = Path(sys.executable).parent
    words = [*command, "start_server", "--app", str(app),
             "--studies", str(studies or working_folders["studies"]),
             "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    for key, value in settings.items():
        words += ["--conf", key, value]
    variables = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                 "TMPDIR": str(working_folders["scratch"]), "OMP_NUM_THREADS": "1",
                 "MONAI_LABEL_SESSION_PATH": str(working_folders["sessions"]),
                 **(environment or {})}  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as output, requests.Session() as http:
        # The server closes an idle connection after five seconds: a slow test would meet that moment.
        http.headers["Connection"] = "close"
        process = psutil.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=variables
        )
        server = Server(f"http://127.0.0.1:{port}", working_folders["studies"], working_folders["models"],
                        working_folders["scratch"], log, http, process)  # fmt: skip
        try:
            _wait_until_it_answers(server)
            yield server
        finally:
            _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: Server) -> None:
    def answers() -> bool:
        assert server.process.poll() is None, f"the server did not start:\n{server.end_of_log()}"
        with suppress(requests.ConnectionError):
            return server.ask("GET", "/info/").status_code == 200
        return False

    wait_until(answers, "the server answers", context=server.end_of_log)


def _end(process: psutil.Popen) -> None:
    children = process.children(recursive=True) if process.poll() is None else []
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)
    for child in (process, *children):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=LIMIT_S)
    process.wait(LIMIT_S)


def put_model(models: Path, recipe: Recipe = TINY) -> str:
    """Register and promote an untrained network, and return its version."""
    torch.manual_seed(0)
    version = save_model(models, build_network(recipe).state_dict(), recipe, {"training": {}})
    Registry(models).publish(version, reason="for a test")
    return version


def small_ct(image_id: str = "case", *, shape: tuple[int, int, int] = (40, 36, 24)) -> CtVolume:
    """Return a phantom CT of 40 x 36 x 24 voxels, 1.5 x 2 x 3 mm."""
    return make_ct(make_grid(shape), image_id=image_id)


def put_case(server: Server, image_id: str, *, is_labelled: bool = False) -> Grid:
    """Copy a scan, and its final label if wanted, into the studies folder as a user would; return its grid."""
    ct = small_ct(image_id)
    write_ct(server.studies / f"{image_id}.nii.gz", ct)
    if is_labelled:
        path = server.studies / "labels" / "final" / f"{image_id}.nii.gz"
        write_label(path, two_organs(ct.grid))
        # An older modification time, as of a copied file: the server waits with files written just now.
        os.utime(path, (path.stat().st_mtime - 60,) * 2)
        server.wait_for_label(image_id)
    return ct.grid


def two_organs(grid: Grid) -> LabelVolume:
    """Return a label with a brainstem and a left parotid, with the values 1 and 4."""
    array = np.zeros(grid.shape_vox, np.uint8)
    array[5:12, 4:9, 2:8] = TINY.labels["Brainstem"]
    array[16:20, 4:9, 2:8] = TINY.labels["Parotid_L"]
    return LabelVolume(array, grid, TINY.labels)


def parts(answer: requests.Response) -> dict[str, tuple[str, bytes]]:
    """Return name -> (file name, content) for the parts of a multipart answer."""
    contents = {}
    for part in MultipartDecoder.from_response(answer).parts:
        words = part.headers[b"Content-Disposition"].decode().split("; ")
        about = dict(word.split("=", 1) for word in words if "=" in word)
        contents[about["name"].strip('"')] = (about.get("filename", "").strip('"'), part.content)
    return contents
