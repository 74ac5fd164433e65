"""Effects of a retraining on the active model: rows 7 and 8."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.defects import scans
from tests.defects.client import as_file, infer, put_label, put_scan, train, voxels
from tests.defects.targets import Run, Target
from tests.server.running import Server

pytestmark = pytest.mark.server

EPOCHS = 12
RETRAINING_EPOCHS = 2
"""Enough to lose what was learned."""
EARLY = [f"case_{number}" for number in range(8)]
LATE = [f"late_{number}" for number in range(4)]
EXAM_SEED = 100


@dataclass(frozen=True, slots=True)
class Retraining:
    """A training, followed by a second one after wrong labels and new cases were submitted.

    Attributes:
        runs: Both trainings.
        dice: Mean DSC of the active model after each, in a scan without a label.
    """

    runs: list[Run]
    dice: list[float]


@pytest.fixture(scope="module")
def retraining(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retraining]:
    with target.running(tmp_path_factory.mktemp("retraining")) as server:
        put_scan(server, "exam", ct=scans.scan(EXAM_SEED))
        for seed, case in enumerate(EARLY):
            put_scan(server, case, ct=scans.scan(seed))
            assert put_label(server, case, as_file(scans.label(seed))).status_code == 200
        train(server, target.model, EPOCHS)
        dice = [served_dice(server, target)]
        # Correct labels on the evaluation cases and the new cases, wrong ones on all others.
        evaluation_cases = target.runs(server)[0].validation
        for seed, case in enumerate(EARLY):
            if case not in evaluation_cases:
                swapped = as_file(scans.label(seed, is_swapped=True))
                assert put_label(server, case, swapped).status_code == 200
        for seed, case in enumerate(LATE, start=len(EARLY)):
            put_scan(server, case, ct=scans.scan(seed))
            assert put_label(server, case, as_file(scans.label(seed))).status_code == 200
        train(server, target.model, RETRAINING_EPOCHS)
        dice.append(served_dice(server, target))
        yield Retraining(target.runs(server), dice)


def served_dice(server: Server, target: Target) -> float:
    """Return the mean DSC of the active model in a scan without a label."""
    answer = infer(server, target.model, "exam")
    assert answer.status_code == 200, answer.text
    return scans.mean_dice(voxels(answer.content), scans.label(EXAM_SEED).array)


def test_row_07_retraining_does_not_make_the_served_model_worse(retraining: Retraining) -> None:
    good, later = retraining.dice
    assert good > 0.4, "the first training learned too little to detect a loss"
    assert later >= good - 0.02


def test_row_08_evaluation_case_is_never_trained_on(retraining: Retraining) -> None:
    first, second = retraining.runs
    assert first.validation
    assert first.training
    assert first.validation | first.training == set(EARLY)
    assert second.validation | second.training == {*EARLY, *LATE}
    assert first.validation <= second.validation
    assert not first.validation & second.training
