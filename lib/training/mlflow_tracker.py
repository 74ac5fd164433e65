"""A run's curves in MLflow, kept in a database or behind a server."""

import hashlib
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.errors import ConfigError
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.storage.atomic_files import write_json
from lib.training.record import flattened
from lib.training.tracking import metrics_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "mlflow.json"
EXPERIMENT = "organnet-label"
SCHEMES = ("sqlite:///", "mysql", "postgresql", "mssql", "http://", "https://")
PARAMETERS_AT_ONCE = 100
"""MLflow's limit for one request."""
LONGEST_PARAMETER = 500
"""Characters of a parameter's value; the longest that MLflow's oldest databases take."""


class Mlflow:
    """Parameters once, metrics each epoch; a run that is resumed goes on in the same MLflow run."""

    def __init__(self, uri: str, run_dir: Path) -> None:
        """Check `uri`; nothing is opened yet.

        Raises:
            ConfigError: If it is a folder: MLflow 3 refuses to keep runs in files.
        """
        if not uri.startswith(SCHEMES):
            raise ConfigError(
                f"--mlflow {uri}: MLflow 3 keeps runs in a database, not in a folder; write "
                f"sqlite:///{(Path(uri.removeprefix('file:')) / 'mlflow.db').as_posix()}, "
                "or the address of a server or database (http://, mysql://, postgresql://)"
            )
        self._uri = uri
        self._file = run_dir / FILE
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._last_epoch = 0

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        """Open the run and add the epochs that it lacks."""
        client = _client(self._uri)
        known = self._known_run() if history else None
        self._run_id = known or self._new_run(client, record)
        points = client.get_metric_history(self._run_id, "loss")
        self._last_epoch = max((point.step for point in points), default=0)
        client.update_run(self._run_id, status="RUNNING")
        self._client = client
        for entry in history:
            self.epoch(entry)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Log the epoch's numbers, unless the run was killed just after it had logged them."""
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
        """Say how the run ended."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, status=status)

    def _known_run(self) -> str | None:
        """Return the run that this folder's earlier sittings logged to, where it was in this database."""
        try:
            said = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(said["run_id"]) if said.get("uri") == without_password(self._uri) else None

    def _new_run(self, client: "MlflowClient", record: Mapping[str, Any]) -> str:
        """Return a new run, its parameters logged, its id noted in the run's folder."""
        from mlflow.entities import Param

        folder = self._file.parent
        found = client.get_experiment_by_name(EXPERIMENT)
        # Nothing is stored as an artifact; without a place for them MLflow names one in the working folder.
        place = None if self._uri.startswith("http") else folder.resolve().as_uri()
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT, place)
        run_id = str(client.create_run(experiment, run_name=folder.name).info.run_id)
        parameters = [
            Param(k, str(v)[:LONGEST_PARAMETER]) for k, v in parameters_of(record).items()
        ]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            client.log_batch(run_id, params=parameters[start : start + PARAMETERS_AT_ONCE])
        write_json(self._file, {"run_id": run_id, "uri": without_password(self._uri)})
        return run_id


def parameters_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's record flattened, each list of cases as their number and one digest of all."""
    rest = {key: value for key, value in record.items() if not key.endswith("cases")}
    for key in record.keys() - rest.keys():
        whole = json.dumps(record[key], sort_keys=True).encode()
        rest[key] = {"count": len(record[key]), "digest": hashlib.sha256(whole).hexdigest()[:24]}
    return flattened(rest)


def without_password(uri: str) -> str:
    """Return `uri` with the password that it may hold left out."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1@", uri)


def _client(uri: str) -> "MlflowClient":
    # A server that is gone holds a training up for half a minute, not for the minutes of MLflow's defaults.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # MLflow 3.17 asks SQLAlchemy 2.1 for what that calls deprecated.
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)
