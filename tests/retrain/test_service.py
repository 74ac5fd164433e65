"""The retraining service, and the settings that an administrator changes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lib.config import AppConfig, RetrainConfig
from lib.errors import ConfigError
from lib.models.model_history import Candidate, ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry, save_model
from lib.networks.build import build_network
from lib.recipes.schema import ClickConfig
from lib.retrain.runs import RunState
from lib.retrain.scheduler import MAX_ATTEMPTS
from lib.retrain.service import RetrainingService
from lib.retrain.settings import Settings
from lib.storage.database import FILE, Database
from lib.storage.tables import Run
from tests.tiny import TINY


@pytest.fixture
def retraining(tmp_path: Path) -> Iterator[RetrainingService]:
    database = Database(tmp_path / FILE)
    registry = Registry(tmp_path / "models")
    config = AppConfig(model_dir=tmp_path / "models", starter_dir=tmp_path, retrain=RetrainConfig())
    promoter = Promoter(registry, ModelHistory(database))
    yield RetrainingService(config, database, tmp_path, promoter, labelled=list)
    database.close()


def given_up(retraining: RetrainingService, decision: str | None) -> Run:
    """Return a run after its last attempt has died, with this decision about its candidate model."""
    run = retraining.runs.queue(why="", request={}, cases=[], initial_version=None)
    if decision:
        retraining.models.record(Candidate(version="candidate", recipe="tiny", run_id=run.id))
    if decision in ("promoted", "rejected"):
        retraining.models.decide("candidate", decision=decision, reason="the reason")
    run = retraining.runs.update(run.id, attempts=MAX_ATTEMPTS - 1)
    retraining.scheduler._record_crash(run, -11)
    return retraining.runs.get(run.id)


@pytest.mark.parametrize("decision", ["promoted", "rejected"])
def test_a_run_that_is_given_up_ends_with_the_decision_about_its_candidate(
    retraining: RetrainingService, decision: str
) -> None:
    run = given_up(retraining, decision)
    assert (run.state, run.outcome) == (RunState(decision), "the reason")


def test_without_a_decision_the_run_has_failed_and_its_candidate_is_rejected(
    retraining: RetrainingService,
) -> None:
    run = given_up(retraining, "waiting")
    assert run.state == RunState.FAILED
    assert str(run.outcome).startswith("its process ended with code -11, 3 times")
    row = retraining.models.get("candidate")
    assert row is not None
    assert (row.decision, row.reason) == ("rejected", "its training failed before it was evaluated")


@pytest.mark.parametrize(("parent", "decision"), [(None, "rejected"), ("another", "waiting")])
def test_a_candidate_that_is_only_in_the_model_folder_is_rejected_with_its_run(
    retraining: RetrainingService, parent: str | None, decision: str
) -> None:
    run = retraining.runs.queue(why="", request={}, cases=[], initial_version=None)
    card = {"training": {}, "run": run.id, "parent": parent}
    weights = build_network(TINY).state_dict()
    version = save_model(retraining.registry.folder, weights, TINY, card)
    # The run was killed before it wrote a row: `reconcile` writes one without a run.
    retraining.promoter.reconcile()
    retraining.runs.update(run.id, attempts=MAX_ATTEMPTS - 1)
    retraining.scheduler._record_crash(retraining.runs.get(run.id), -9)
    row = retraining.models.get(version)
    assert row is not None
    assert (row.run_id, row.decision) == (None, decision)
    assert retraining.runs.get(run.id).state == RunState.FAILED


def test_a_run_without_a_candidate_has_failed(retraining: RetrainingService) -> None:
    assert given_up(retraining, None).state == RunState.FAILED


def test_clicks_are_added_to_the_active_model_but_never_taken_away(
    retraining: RetrainingService,
) -> None:
    guided = replace(TINY, clicks=ClickConfig(probability=0.5))
    paths = {}
    for recipe in (TINY, guided):
        weights = build_network(recipe).state_dict()
        version = save_model(retraining.registry.folder, weights, recipe, {})
        paths[recipe.has_clicks] = retraining.registry.weights_path(version)
    retraining.recipe = guided
    assert retraining._load_if_fitting(paths[False]) is not None
    assert retraining._load_if_fitting(paths[True]) is not None
    retraining.recipe = TINY
    assert retraining._load_if_fitting(paths[False]) is not None
    assert retraining._load_if_fitting(paths[True]) is None


START = RetrainConfig(min_new_labels=7)


def test_a_changed_setting_is_stored_and_can_be_reset(database: Database) -> None:
    settings = Settings(database, START)
    assert settings.get() == START
    assert (
        settings.change({"min_new_labels": "3", "auto_retrain": "off"}, by="anna").min_new_labels
        == 3
    )
    later = Settings(database, RetrainConfig(min_new_labels=9))
    assert (later.get().min_new_labels, later.get().auto_retrain) == (3, False)
    assert later.change({"min_new_labels": None}, by="anna").min_new_labels == 9
    assert later.get().min_new_labels == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_new_labels": "some"}, "min_new_labels: 'some'"),
        ({"min_new_labels": 0}, "at least 1"),
        ({"quiet_s": -1}, "quiet_s must be finite and at least 0"),
        ({"quiet_s": float("nan")}, "quiet_s must be finite and at least 0"),
        ({"promotion_confidence": 1}, "promotion_confidence must be at least 0.5"),
        ({"colour": "red"}, "colour: no such setting"),
        ({"colour": None}, "colour: no such setting"),
    ],
)
def test_a_wrong_value_changes_nothing(
    database: Database, values: dict[str, object], message: str
) -> None:
    settings = Settings(database, START)
    with pytest.raises(ConfigError, match=message):
        settings.change({"max_wait_s": 5, **values}, by="anna")
    assert settings.get() == START
