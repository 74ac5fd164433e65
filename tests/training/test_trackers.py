import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.errors import ConfigError
from lib.training.cases import Case
from lib.training.progress import Tracker, Trackers
from lib.training.run import Progress, RunCallbacks, RunOptions, train
from lib.training.trackers import (
    EXPERIMENT,
    Mlflow,
    TensorBoard,
    metrics_of,
    parameters_of,
    without_password,
)
from tests.tiny import TINY

RECORD = {"recipe": {"name": "tiny", "network": {"width": 2}}, "cases": {"a": "1", "b": "2"}}


def entry(epoch: int, **organs: float) -> dict[str, Any]:
    values = {"epoch": epoch, "loss": 1 / epoch, "learning_rate": 1e-3, "spent_s": 2.0 * epoch}
    return {**values, "organ_dice": organs} if organs else values


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_the_values_of_an_epoch_have_the_names_of_their_curves() -> None:
    assert metrics_of(entry(2, Brainstem=0.5, Larynx=0.7)) == {
        "loss": 0.5,
        "learning_rate": 1e-3,
        "spent_s": 4.0,
        "dice/Brainstem": 0.5,
        "dice/Larynx": 0.7,
        "dice/mean": 0.6,
    }


def test_tensorboard_reads_the_curves_and_a_resumed_run_repeats_no_point(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    first.start(RECORD, [])
    done = [entry(1), entry(2, Brainstem=0.25)]
    for each in [*done, entry(3)]:
        first.epoch(each)
    # Killed after epoch 3 was logged and before its checkpoint was written.
    first.end("KILLED")
    second = TensorBoard(tmp_path)
    second.start(RECORD, done)
    for each in (entry(3), entry(4, Brainstem=0.5)):
        second.epoch(each)
    second.end("FINISHED")
    assert [step for step, _ in points(tmp_path, "loss")] == [1, 2, 3, 4]
    assert points(tmp_path, "dice/Brainstem") == [(2, 0.25), (4, 0.5)]


def test_a_new_run_in_the_folder_removes_the_points_of_the_old_one(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        tracker = TensorBoard(tmp_path)
        tracker.start(RECORD, [])
        tracker.epoch({**entry(1), "loss": loss})
        tracker.end("FINISHED")
    assert points(tmp_path, "loss") == [(1, 2.0)]


def test_a_training_shows_its_curves_its_config_and_its_contours(
    cases: list[Case], tmp_path: Path
) -> None:
    folder = tmp_path / "tensorboard"
    train(
        TINY,
        cases[:2],
        cases[2:],
        run_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(trackers=[TensorBoard(folder, pictures=True)]),
    )
    events = EventAccumulator(str(folder)).Reload()
    assert {f"dice/{organ}" for organ in TINY.labels} < set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("dice/mean")] == [2, 3]
    assert [event.step for event in events.Images("contours")] == [2, 3]
    assert "config/text_summary" in events.Tags()["tensors"]


class FullDisk:
    """A tracker that fails after one epoch because the disk is full."""

    def __init__(self) -> None:
        self.calls = 0

    def start(self, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> None:
        self.calls += 1

    def epoch(self, entry: Mapping[str, Any]) -> None:
        self.calls += 1
        if entry["epoch"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    def contours(self, epoch: int, ct: object, label: object) -> None:
        self.calls += 1

    def end(self, status: str, /) -> None:
        self.calls += 1


def test_a_failing_tracker_is_reported_once_and_the_training_continues(
    cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing, seen = FullDisk(), list[Progress]()
    trackers: list[Tracker] = [failing, TensorBoard(tmp_path / "tensorboard")]
    train(
        TINY,
        cases[:2],
        [],
        run_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(on_progress=seen.append, trackers=trackers),
    )
    assert [progress.epoch for progress in seen] == [1, 2, 3]
    assert failing.calls == 3
    warnings = [record.message for record in caplog.records if "stopped working" in record.message]
    assert warnings == [
        "FullDisk stopped working (OSError: [Errno 28] No space left on device); "
        "the training continues without it"
    ]
    assert len(points(tmp_path / "tensorboard", "loss")) == 3


def test_tensorboard_on_a_full_disk_raises_a_caught_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = TensorBoard(tmp_path)
    trackers = Trackers([tracker])
    trackers.start(RECORD, [])
    tracker.end("")
    with Path("/dev/full").open("wb", buffering=0) as full:
        tracker._file = full
        trackers.epoch(entry(1))
        trackers.epoch(entry(2))
    assert [r.levelname for r in caplog.records if "TensorBoard" in r.message] == ["WARNING"]


@pytest.mark.parametrize("uri", ["mlruns", "/data/mlruns", "file:/data/mlruns"])
def test_mlflow_in_a_folder_is_refused_with_the_correct_uri(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write sqlite:///.*mlruns/mlflow\.db"):
        Mlflow(uri, tmp_path)


def test_mlflow_continues_the_same_run_without_repeated_points(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = Mlflow(uri, tmp_path / "run")
    first.start(RECORD, [])
    done = [entry(1), entry(2, Brainstem=0.25)]
    # Epoch 2 was never logged, because the tracker had failed; epoch 1 was.
    first.epoch(done[0])
    second = Mlflow(uri, tmp_path / "run")
    second.start(RECORD, done)
    second.epoch(entry(2))
    second.epoch(entry(3))
    second.end("FINISHED")

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / "mlflow.json").read_text())["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.network.width"] == "2"
    assert run.data.params["cases.count"] == "2"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == [1, 2, 3]
    (dice,) = client.get_metric_history(run.info.run_id, "dice/Brainstem")
    assert (dice.step, dice.value) == (2, 0.25)

    anew = Mlflow(uri, tmp_path / "run")
    anew.start(RECORD, [])
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_an_unreachable_server_is_reported_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackers = Trackers([Mlflow("http://127.0.0.1:9", tmp_path)])
    trackers.start(RECORD, [])
    trackers.epoch(entry(1))
    trackers.end("FINISHED")
    assert sum("Mlflow stopped working" in record.message for record in caplog.records) == 1


def test_a_password_is_never_stored() -> None:
    assert without_password("mysql://ann:s3cret@db/x") == "mysql://ann@db/x"
    assert without_password("postgresql+psycopg2://ann:p@db:5432/x") == (
        "postgresql+psycopg2://ann@db:5432/x"
    )
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
    assert without_password("http://server:5000") == "http://server:5000"


def test_parameters_name_the_cases_by_number_and_digest() -> None:
    named = parameters_of(RECORD)
    assert named["cases.count"] == 2
    assert named["cases.digest"] != parameters_of({**RECORD, "cases": {"a": "1"}})["cases.digest"]
    assert "cases.a" not in named
