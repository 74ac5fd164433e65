"""Functions that measure requests to a server by the number of its studies."""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from sqlalchemy import insert

from apps.support.benchmark_record import Section
from apps.support.server_process import Server, serving
from lib.activelearning.pool import ScoreKind
from lib.activelearning.selection.catalogue import METHODS
from lib.dicom.ct_writer import write_ct_series
from lib.imaging.geometry import Grid, ras_to_lps
from lib.imaging.quantities import ShapeVox
from lib.imaging.scans import write_ct, write_label
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.labels.history import FINAL, LabelHistory
from lib.models.registry import Registry, save_model
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP
from lib.retrain.runs import Runs, RunState
from lib.storage.database import FILE, Database, state_folder
from lib.storage.tables import LabelVersion, Score, now

SHAPE_VOX: ShapeVox = (32, 32, 12)
"""Size of the scans, small because only their number matters."""
SERIES_EVERY, LABEL_EVERY = 20, 10
"""One study in so many is a DICOM series; one has a final label."""
FIRST_COUNT = 100
"""Number of studies that the others are compared with."""
REPEATS = 20
"""Number of requests of each kind."""
IDLE_S = 60.0
"""Duration in s of the measurement of an idle server."""
SETTLE_S = 20.0
"""Time in s after the start in which the server reads the labels folder."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one kind of request costs."""

    cpu_s: float
    """Processor time of the server process for one request."""
    seconds: Sequence[float]
    """Times until the answers."""

    def columns(self, name: str) -> dict[str, float]:
        """Return the cells of a table in ms."""
        cells = {f"cpu {name}": 1000 * self.cpu_s}
        if self.seconds:
            cells[f"p50 {name}"] = 1000 * statistics.median(self.seconds)
            cells[f"p95 {name}"] = 1000 * float(np.percentile(self.seconds, 95))
        return cells


def requests_by_studies(studies: int, device: str) -> Section:
    """Return the cost of each kind of request to servers with few and with many studies."""
    counts = [n for n in (FIRST_COUNT, studies // 10, studies) if FIRST_COUNT <= n <= studies]
    rows: dict[str, dict[str, float | int | str | None]] = {}
    for number in dict.fromkeys(counts or [studies]):
        with TemporaryDirectory(prefix="organnet-bench-") as name:
            for row, cost in measured(Path(name), number, device).items():
                rows.setdefault(row, {}).update(cost.columns(f"{number}"))
    return Section(
        "studies",
        "ms",
        rows,
        notes=(
            f"processor time of the server for one request, median and 95th percentile of {REPEATS} times to "
            "the answer, by the number of studies; one study in "
            f"{SERIES_EVERY} is a DICOM series, one in {LABEL_EVERY} has a label",
        ),
    )


def measured(folder: Path, studies: int, device: str) -> dict[str, Cost]:
    """Return the cost of each kind of request to a server with this number of studies.

    Args:
        folder: An empty folder.
        studies: Number of studies.
        device: Device of the server.
    """
    scans, names = folder / "studies", [f"scan_{number:05d}" for number in range(studies)]
    models = folder / "models"
    version = _write_model(models)
    write_studies(scans, names, state_folder(str(scans), models), version)
    conf = {"model_dir": str(models), "device": device, "auto_retrain": "off"}
    began = time.perf_counter()
    with serving(scans, conf, log=folder / "server.log") as server:
        up_s = time.perf_counter() - began
        process = psutil.Process(server.process.pid)
        costs = {"start": Cost(_cpu_s(process), [up_s])}
        time.sleep(SETTLE_S)
        costs["first seconds after the start"] = Cost(_cpu_s(process) - costs["start"].cpu_s, [])
        before = _cpu_s(process)
        time.sleep(IDLE_S)
        costs["idle, of one second"] = Cost((_cpu_s(process) - before) / IDLE_S, [])
        for name, send in _senders(server, scans, names, folder).items():
            send(0)
            costs[name] = _cost(process, send)
    return costs


def _cost(process: psutil.Process, send: Callable[[int], object]) -> Cost:
    before, seconds = _cpu_s(process), []
    for number in range(1, 1 + REPEATS):
        began = time.perf_counter()
        send(number)
        seconds.append(time.perf_counter() - began)
    return Cost((_cpu_s(process) - before) / REPEATS, seconds)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _senders(
    server: Server, scans: Path, names: Sequence[str], folder: Path
) -> dict[str, Callable[[int], object]]:
    """Return description -> function that sends the request with a number."""
    clients = count()
    unlabelled = [name for number, name in enumerate(names) if number % LABEL_EVERY]
    scan, label = folder / "scan.nii.gz", folder / "label.nii.gz"
    os.link(next(scans.glob("scan_*.nii.gz")), scan)
    os.link(next((scans / "labels" / FINAL).iterdir()), label)

    def get(path: str) -> Callable[[int], object]:
        return lambda _: server.request("GET", path)

    def next_case(strategy: str) -> Callable[[int], object]:
        return lambda _: server.request(
            "POST", f"/activelearning/{strategy}", json={"client_id": f"client-{next(clients)}"}
        )

    def put_label(number: int) -> None:
        with label.open("rb") as file:
            path = f"/datastore/label?image={unlabelled[number]}&tag=final"
            server.request("PUT", path, data={"params": "{}"}, files={"label": (label.name, file)})

    def put_image(number: int) -> None:
        with scan.open("rb") as file:
            path = f"/datastore/image?image=sent_{number:05d}"
            server.request("PUT", path, files={"file": (scan.name, file)})

    def lay_in(number: int) -> None:
        total = server.request("GET", "/datastore/").json()["total"]
        os.link(scan, scans / f"laid_{number:05d}.nii.gz")
        while server.request("GET", "/datastore/").json()["total"] == total:
            time.sleep(0.05)

    return {
        "GET /info/": get("/info/"),
        "GET /datastore/": get("/datastore/"),
        "GET /datastore/?output=all": get("/datastore/?output=all"),
        "GET /organnet/status": get("/organnet/status"),
        "GET /organnet/labels": get("/organnet/labels"),
        "GET /train/": get("/train/"),
        **{f"POST /activelearning/{name}": next_case(name) for name in METHODS},
        "PUT /datastore/label": put_label,
        "PUT /datastore/image": put_image,
        "list with a file laid in": lay_in,
    }


def _write_model(models: Path) -> str:
    """Write and promote a network with random weights, and return its version."""
    torch.manual_seed(0)
    version = save_model(models, build_network(OPENKBP).state_dict(), OPENKBP, {"training": {}})
    Registry(models).publish(version, reason="benchmark")
    return version


def write_studies(scans: Path, names: Sequence[str], state: Path, version: str) -> None:
    """Write studies that are hard links of one scan, one series and one label, with their scores.

    Args:
        scans: The studies folder.
        names: Image ids.
        state: Folder of the database.
        version: The model of the scores.
    """
    (scans / "labels" / FINAL).mkdir(parents=True)
    ct = _noise_ct()
    first_scan, first_label = scans / ".scan.nii.gz", scans / ".label.nii.gz"
    write_ct(first_scan, ct)
    array = np.zeros(SHAPE_VOX, np.uint8)
    array[12:20, 12:20, 3:9] = 1
    write_label(first_label, LabelVolume(array, ct.grid, OPENKBP.labels))
    minute_ago = time.time() - 60
    os.utime(first_label, (minute_ago, minute_ago))
    write_ct_series(ct, scans / ".series", patient_id="bench")
    slices = sorted((scans / ".series").iterdir())
    for number, name in enumerate(names):
        if number % SERIES_EVERY == 1:
            (scans / name).mkdir()
            for file in slices:
                os.link(file, scans / name / file.name)
        else:
            os.link(first_scan, scans / f"{name}.nii.gz")
    database = Database(state / FILE)
    labelled = names[::LABEL_EVERY]
    digest = _write_labels(database, state, first_label, labelled)
    _write_scores(database, names, version)
    _write_label_shapes(database, labelled, digest)
    _write_run(database)
    database.close()


def _noise_ct() -> CtVolume:
    array = np.random.default_rng(1).normal(30, 60, SHAPE_VOX).astype(np.int16)
    # Air beside soft tissue, which every CT has.
    array[: SHAPE_VOX[0] // 4] -= 1000
    affine = ras_to_lps(np.diag([4.0, 4.0, 3.0, 1.0]))
    return CtVolume("bench", array, Grid.from_affine(SHAPE_VOX, affine))


def _write_run(database: Database) -> None:
    """Write a training that is over."""
    runs = Runs(database)
    run = runs.queue(
        why="benchmark", request={"recipe": OPENKBP.as_dict()}, cases=[], initial_version=None
    )
    runs.update(run.id, state=RunState.FAILED, outcome="benchmark")


def _write_labels(database: Database, state: Path, label: Path, names: Sequence[str]) -> str:
    """Write one version of a final label for each image, as `LabelHistory` does; return its digest."""
    history = LabelHistory(database, state)
    digest = history.keep_volume(label)
    columns: dict[str, Any] = {
        "tag": FINAL, "number": 1, "digest": digest, "source": "client", "author": "ada", "client": "",
        "model_version": None, "organs": ["Brainstem"], "doubts": [], "changes": [],
        "info": {"client_id": "bench"},
    }  # fmt: skip
    moment = now()
    rows = [
        {
            **columns,
            "image_id": n,
            "submitted_at": moment,
            "is_in_place": True,
            "parent_id": None,
            "hidden_at": None,
        }
        for n in names
    ]
    with database.writing() as session:
        session.execute(insert(LabelVersion), rows)
    for name in names:
        os.link(label, label.parent / "labels" / FINAL / f"{name}.nii.gz")
        record = {**columns, "image_id": name, "parent": None, "hidden_at": None,
                  "submitted_at": moment.isoformat()}  # fmt: skip
        file = history.folder / "history" / name / f"{FINAL}-1.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(record), encoding="utf-8")
    return digest


def _write_scores(database: Database, names: Sequence[str], version: str) -> None:
    """Write the scores of each image into the database, as the scoring process does."""
    rng = np.random.default_rng(1)
    rows = []
    for name in names:
        entropy = float(rng.uniform(0.01, 0.3))
        place_mm = [round(float(v), 1) for v in rng.normal(0, 20, 3)]
        shape = {"volume_ml": float(rng.uniform(10, 30)), "centroid_mm": place_mm, "pieces": 1}
        organs = {
            organ: {"entropy": entropy * float(rng.uniform(0.5, 1.5)), "shape": shape}
            for organ in OPENKBP.labels
        }
        features = [round(float(v), 4) for v in rng.normal(size=128)]
        values = {"entropy": entropy, "foreground": 0.1, "organs": organs, "features": features}
        rows.append(_score(name, version, ScoreKind.PREDICTION, values))
        spread = {"volume_cv": entropy, "pairwise_dice": 1 - entropy}
        samples = {"organs": dict.fromkeys(OPENKBP.labels, spread)}
        rows.append(_score(name, version, ScoreKind.SAMPLES, samples))
        rows.append(_score(name, "", ScoreKind.APPEARANCE, {"features": features[:64]}))
    with database.writing() as session:
        session.execute(insert(Score), rows)


def _write_label_shapes(database: Database, names: Sequence[str], digest: str) -> None:
    rows = [_score(name, digest, ScoreKind.LABEL_SHAPES, {}) for name in names]
    with database.writing() as session:
        session.execute(insert(Score), rows)


def _score(name: str, model: str, kind: ScoreKind, values: dict[str, Any]) -> dict[str, Any]:
    return {"image_id": name, "model_version": model, "kind": kind.value, "values": values,
            "seconds": 1.0, "error": None, "computed_at": now()}  # fmt: skip
