"""Trackers of a training run: TensorBoard in the run's folder, MLflow through a database or server.

Both libraries are imported when a tracker starts: most runs of the tests use neither.
"""

import hashlib
import json
import logging
import os
import re
import struct
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import IO, TYPE_CHECKING, Any

from lib.errors import ConfigError
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.storage.atomic_files import write_json
from lib.training.record import as_yaml, flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_FILE = "mlflow.json"
EXPERIMENT = "organnet-label"
SCHEMES = ("sqlite:///", "mysql", "postgresql", "mssql", "http://", "https://")
PARAMETERS_AT_ONCE = 100
"""Largest number of parameters in one request (limit of MLflow)."""
LONGEST_PARAMETER = 500
"""Largest number of characters of a parameter's value (limit of MLflow's oldest databases)."""


def metrics_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return curve name -> value of an epoch."""
    organs = entry.get("organ_dice") or {}
    metrics = {name: float(entry[name]) for name in ("loss", "learning_rate", "spent_s")}
    metrics.update({f"dice/{organ}": float(value) for organ, value in organs.items()})
    if organs:
        metrics["dice/mean"] = sum(organs.values()) / len(organs)
    return metrics


class TensorBoard:
    """Event files for `tensorboard --logdir`.

    Written without `SummaryWriter`: its background thread fails on a full disk where no caller can catch it.
    """

    def __init__(self, folder: Path, *, pictures: bool = False) -> None:
        self.folder = folder
        self.pictures = pictures
        self._file: IO[bytes] | None = None

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open a new file, which makes later epochs in earlier files void."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard.summary import text

        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}"
        self._file = (self.folder / name).open("xb")
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=len(history) + 1, session_log=SessionLog(status=SessionLog.START)))
        # Markdown shows indented lines verbatim.
        config = text("config", indent(as_yaml(record), "    "))  # type: ignore[no-untyped-call]
        self._write(Event(summary=config))
        self._file.flush()

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Write the epoch's numbers."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=k, simple_value=v) for k, v in metrics_of(entry).items()]
        self._write_values(entry["epoch"], values)

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Write a picture of the contours if pictures are enabled; the last one is also kept as a file."""
        if not self.pictures:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        from lib.reports.ct_overlays import contour_picture

        path = self.folder / "contours.png"
        contour_picture(ct, label, path, title=f"{ct.image_id}, epoch {epoch}")
        png = path.read_bytes()
        # PNG specification, section 11.2.1: the header chunk begins with width and height.
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self._write_values(epoch, [Summary.Value(tag="contours", image=image)])

    def end(self, _status: str, /) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_values(self, step: int, values: Sequence[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(step=step, summary=Summary(value=values)))
        if self._file is not None:
            self._file.flush()

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is not None:
            event.wall_time = time.time()
            RecordWriter(self._file).write(event.SerializeToString())


class Mlflow:
    """MLflow tracking: parameters once, metrics each epoch; a resumed run continues in its MLflow run."""

    def __init__(self, uri: str, run_dir: Path) -> None:
        """Check `uri`; nothing is opened yet.

        Raises:
            ConfigError: If it is a folder: MLflow 3 does not store runs in files.
        """
        if not uri.startswith(SCHEMES):
            raise ConfigError(
                f"--mlflow {uri}: MLflow 3 keeps runs in a database, not in a folder; write "
                f"sqlite:///{(Path(uri.removeprefix('file:')) / 'mlflow.db').as_posix()}, "
                "or the address of a server or database (http://, mysql://, postgresql://)"
            )
        self._uri = uri
        self._file = run_dir / MLFLOW_FILE
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._last_epoch = 0

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open the MLflow run and add the epochs that it lacks."""
        client = _client(self._uri)
        earlier_run = self._earlier_run() if history else None
        self._run_id = earlier_run or self._new_run(client, record)
        points = client.get_metric_history(self._run_id, "loss")
        self._last_epoch = max((point.step for point in points), default=0)
        client.update_run(self._run_id, status="RUNNING")
        self._client = client
        for entry in history:
            self.epoch(entry)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Log the epoch's numbers, unless they were logged just before the run was killed."""
        if self._client is None or entry["epoch"] <= self._last_epoch:
            return
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(k, v, now, entry["epoch"]) for k, v in metrics_of(entry).items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._last_epoch = entry["epoch"]

    def contours(self, epoch: int, ct: CtVolume, label: LabelVolume) -> None:
        """Do nothing: pictures of a patient stay in the run's folder."""

    def end(self, status: str, /) -> None:
        """Log how the run ended."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, status=status)

    def _earlier_run(self) -> str | None:
        """Return the MLflow run of this folder's earlier sessions, if it is in this database."""
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(stored["run_id"]) if stored.get("uri") == without_password(self._uri) else None

    def _new_run(self, client: "MlflowClient", record: Mapping[str, Any]) -> str:
        """Create a run, log its parameters, store its id in the run's folder, and return the id."""
        from mlflow.entities import Param

        folder = self._file.parent
        existing = client.get_experiment_by_name(EXPERIMENT)
        # No artifact is stored; but without a location MLflow creates one in the working folder.
        location = None if self._uri.startswith("http") else folder.resolve().as_uri()
        experiment = (
            existing.experiment_id if existing else client.create_experiment(EXPERIMENT, location)
        )
        run_id = str(client.create_run(experiment, run_name=folder.name).info.run_id)
        parameters = [
            Param(k, str(v)[:LONGEST_PARAMETER]) for k, v in parameters_of(record).items()
        ]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            client.log_batch(run_id, params=parameters[start : start + PARAMETERS_AT_ONCE])
        write_json(self._file, {"run_id": run_id, "uri": without_password(self._uri)})
        return run_id


def parameters_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's record flattened; each list of cases is replaced by its length and a digest."""
    parameters = {key: value for key, value in record.items() if not key.endswith("cases")}
    for key in record.keys() - parameters.keys():
        content = json.dumps(record[key], sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()[:24]
        parameters[key] = {"count": len(record[key]), "digest": digest}
    return flattened(parameters)


def without_password(uri: str) -> str:
    """Return `uri` without its password, if it has one."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1@", uri)


def _client(uri: str) -> "MlflowClient":
    # A lost server delays a training by half a minute, not by the minutes of MLflow's defaults.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # MLflow 3.17 uses an API that SQLAlchemy 2.1 deprecates.
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)
