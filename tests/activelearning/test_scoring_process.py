"""The job runner with its real worker process, on generated patients."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lib.activelearning import scoring_process
from lib.activelearning.edit_costs import EditCostRecords
from lib.activelearning.scores import ScoreCache, ScoreRecords
from lib.activelearning.scoring_jobs import EditCostJobs, FileLocations, ScoringJobs, Studies
from lib.activelearning.scoring_process import flags_for
from lib.jobs.job_runner import JobRunner
from lib.jobs.priority import ServingPriority
from lib.labels.history import LabelHistory, Provenance
from lib.models.model_history import ModelHistory
from lib.models.registry import Registry, save_model
from lib.networks.build import build_network
from lib.storage.atomic_files import digest_of
from lib.storage.database import Database
from lib.training.cases import CACHE_FOLDER, Case, cache_name
from lib.training.cases import digest_of as case_digest
from phantom.cohort import write_cohort
from tests.tiny import TINY
from tests.waiting import LIMIT_S, wait_until

CASES = 3


class Clinic:
    """A studies folder with one labelled case and one invalid file, and a job runner for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".organnet"
        self.ids = write_cohort(folder, recipe=TINY, cases=CASES, labelled=1, seed=5, dicom_cases=0)
        (folder / "broken.nii.gz").write_bytes(b"no scan")
        self.database = Database(self.state / "workflow.sqlite")
        self.records = ScoreRecords(self.database)
        self.cache = ScoreCache(self.records)
        self.registry = Registry(folder / "models")
        self.label = folder / "labels" / "final" / f"{self.ids[0]}.nii.gz"
        self.digest = digest_of(self.label)
        self.labels = LabelHistory(self.database, self.state)
        self.edit_costs = EditCostRecords(self.database)
        self.served: str | None = None
        self.runner = self.new_runner()

    def new_runner(self) -> JobRunner:
        files = FileLocations(
            image=lambda image_id: self.folder / f"{image_id}.nii.gz",
            label=lambda _digest: self.label,
            model=self.registry.weights_path,
        )
        scores = ScoringJobs(
            self.records,
            self.cache,
            studies=lambda: Studies(
                unlabelled=(*self.ids[1:], "broken"), labelled={self.ids[0]: self.digest}
            ),
            served=lambda: self.served,
            files=files,
        )
        edits = EditCostJobs(
            self.edit_costs, ModelHistory(self.database), unrecorded=set[str], files=files
        )
        flags = flags_for(TINY, state=self.state, device="cpu", gpu_share=0.5)
        return JobRunner(self.state, [edits, scores], worker=scoring_process.__name__, flags=flags)

    def publish(self, seed: int) -> str:
        torch.manual_seed(seed)
        weights = build_network(TINY).state_dict()
        self.served = save_model(self.registry.folder, weights, TINY, {})
        return self.served

    def finish(self) -> list[tuple[str, str]]:
        """Run all jobs; return kind and image in the order of computation."""
        before = self.cache.done()
        computed = []
        while self.runner.step():
            self.cache.refresh()
            new = self.cache.done() - before
            before = self.cache.done()
            computed += [(kind.value, image_id) for image_id, _, kind in new]
        return computed


def is_working(runner: JobRunner) -> bool:
    return runner.pid is not None


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    clinic = Clinic(tmp_path)
    yield clinic
    clinic.runner.stop()


def test_each_image_is_scored_once_by_the_active_model(clinic: Clinic) -> None:
    labelled, *unlabelled = clinic.ids
    assert clinic.finish() == [
        ("drawn", labelled), *(("appearance", i) for i in unlabelled), ("appearance", "broken"),
        ("appearance", labelled),
    ]  # fmt: skip
    assert list(clinic.cache.unreadable()) == ["broken"]
    assert "broken" in clinic.cache.unreadable()["broken"]

    first = clinic.publish(1)
    computed = clinic.finish()
    assert len(computed) == len(set(computed)) == 6
    assert computed[-1][0] == "samples"
    assert {d.score.model_version for d in clinic.cache.scores(first).values()} == {first}
    assert clinic.finish() == []

    second = clinic.publish(2)
    assert {d.score.model_version for d in clinic.cache.scores(second).values()} == {first}
    clinic.finish()
    scores = clinic.cache.scores(second)
    assert {d.score.model_version for d in scores.values()} == {second}
    assert set(scores) == set(clinic.ids)
    assert all(scores[image_id].score.has_samples for image_id in unlabelled)


def test_a_submitted_case_is_prepared_for_the_next_training(clinic: Clinic) -> None:
    assert clinic.runner.step()
    case = Case(clinic.ids[0], clinic.folder / f"{clinic.ids[0]}.nii.gz", clinic.label)
    prepared = clinic.state / CACHE_FOLDER / cache_name(case_digest(case), TINY)
    label = np.load(prepared / "label.npy")
    assert label.shape == np.load(prepared / "hu.npy").shape
    assert set(np.unique(label)) <= {0, *TINY.labels.values()}
    assert label.any()


def test_after_a_kill_one_job_has_failed_and_a_new_process_continues(clinic: Clinic) -> None:
    clinic.publish(1)
    assert clinic.runner.step()
    pid = clinic.runner.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    clinic.finish()
    clinic.cache.refresh()
    assert set(clinic.cache.scores(clinic.served)) == set(clinic.ids)


def test_an_image_whose_job_killed_the_process_is_not_tried_again(clinic: Clinic) -> None:
    clinic.publish(1)
    assert clinic.runner.step()

    def kill_soon() -> None:
        time.sleep(1.0)
        if clinic.runner.pid is not None:
            os.kill(clinic.runner.pid, signal.SIGKILL)

    with ServingPriority(clinic.state).inference():
        # The worker waits during the second request, and is killed then.
        threading.Thread(target=kill_soon).start()
        assert clinic.runner.step()
    rows = list(clinic.records.since(0))
    assert rows[-1].error is not None
    assert "its process ended" in rows[-1].error
    clinic.finish()
    keys = [(r.image_id, r.model_version, r.kind) for r in clinic.records.since(0)]
    assert len(keys) == len(set(keys))


def test_scoring_waits_while_a_server_runs_inference(clinic: Clinic) -> None:
    clinic.publish(1)
    assert clinic.runner.step()
    with ServingPriority(clinic.state).inference():
        worker = threading.Thread(target=clinic.runner.step)
        worker.start()
        worker.join(3.0)
        assert worker.is_alive()
    worker.join(LIMIT_S)
    assert not worker.is_alive()


def test_one_of_two_servers_scores_and_the_other_takes_over(clinic: Clinic) -> None:
    other = clinic.new_runner()
    clinic.runner.start()
    wait_until(lambda: list(clinic.records.since(0)), "the first score is there")
    other.start()
    time.sleep(1.0)
    assert not is_working(other)
    clinic.runner.stop()
    clinic.publish(3)
    other.wake()

    def finite_scores() -> int:
        clinic.cache.refresh()
        return len(clinic.cache.scores(clinic.served))

    wait_until(lambda: finite_scores() >= CASES, "all are scored")
    assert is_working(other)
    other.stop()
    assert set(clinic.cache.scores(clinic.served)) == set(clinic.ids)


def test_stopping_during_a_job_leaves_no_process(clinic: Clinic) -> None:
    clinic.publish(1)
    clinic.runner.start()
    wait_until(lambda: clinic.runner.pid is not None, "its process runs")
    pid = clinic.runner.pid
    assert pid is not None
    clinic.runner.stop()
    assert not psutil.pid_exists(pid)
    # The file of "broken" cannot be read: its job fails however far the process came.
    assert all(row.error is None for row in clinic.records.since(0) if row.image_id != "broken")


def test_edit_costs_are_measured_against_the_model_that_was_active(clinic: Clinic) -> None:
    version = clinic.publish(1)
    submission = Provenance(source="client", author="ann", model_version=version)
    clinic.labels.add(clinic.ids[0], "final", clinic.label, submission)
    gone = Provenance(source="client", author="bob", model_version="no-such-model")
    clinic.labels.add(clinic.ids[0], "final", clinic.label, gone)
    assert clinic.runner.step()
    assert clinic.runner.step()
    bob, ann = sorted(clinic.edit_costs.curve(), key=lambda e: e.label.author, reverse=True)
    assert ann.cost.error is None
    assert set(ann.cost.values) == set(TINY.labels)
    # The network has random weights: nearly the whole contour was drawn by the annotator.
    assert ann.cost.mean_dsc is not None
    assert ann.cost.mean_dsc < 0.1
    assert bob.cost.error is not None
    assert "no-such-model" in bob.cost.error
    assert clinic.edit_costs.unmeasured(10) == []
