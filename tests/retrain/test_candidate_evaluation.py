"""Promotion of models that were trained outside a server."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from lib.config import RetrainConfig
from lib.models.model_cards import candidate_from_files
from lib.models.model_history import ModelHistory
from lib.models.promotion import Promoter
from lib.models.registry import Registry, load_model, save_model
from lib.retrain.candidate_evaluation import CandidateEvaluation, publish_candidate
from lib.retrain.settings import Settings
from lib.storage.database import FILE, FOLDER, Database
from lib.training.case_scores import CaseScores
from lib.training.cases import Case
from lib.training.run import RunCallbacks, RunOptions, TrainedModel, train
from tests.tiny import TINY


@pytest.fixture(scope="module")
def trained(cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("trained")
    return train(
        TINY,
        cases[:2],
        cases[2:],
        run_dir=folder,
        cache_dir=folder / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(),
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "models")


def save_trained(registry: Registry, trained: TrainedModel) -> str:
    return save_model(registry.folder, trained.weights, TINY, trained.card)


def save_background_only(registry: Registry, trained: TrainedModel) -> str:
    """Save weights that contour nothing, so that every DSC is 0."""
    weights: dict[str, Tensor] = {key: value.clone() for key, value in trained.weights.items()}
    weights["head.weight"].zero_()
    weights["head.bias"].zero_()
    weights["head.bias"][0] = 10
    return save_model(registry.folder, weights, TINY, {})


def publish(
    registry: Registry, version: str, cases: Sequence[Case], studies: Path
) -> tuple[bool, str]:
    return publish_candidate(
        registry.folder, version, cases, studies=studies, starter=None, by="apps.train"
    )


def recorded(registry: Registry, version: str) -> dict[str, object]:
    card = json.loads((registry.folder / f"{version}.json").read_text(encoding="utf-8"))
    promotion = card["promotion"]
    assert isinstance(promotion, dict)
    return promotion


def test_a_candidate_is_promoted_only_if_it_is_not_worse(
    cases: list[Case], trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    worse = save_background_only(registry, trained)
    registry.publish(worse, reason="by hand")
    better = save_trained(registry, trained)
    is_promoted, reason = publish(registry, better, cases[2:], tmp_path)
    assert is_promoted, reason
    assert " against 0.000 on 1 cases" in reason
    assert registry.promotions()[0]["version"] == better
    assert registry.promotions()[0]["reason"] == reason
    assert recorded(registry, better)["decision"] == "promoted"

    is_promoted, reason = publish(registry, worse, cases[2:], tmp_path)
    assert not is_promoted
    assert registry.published_version() == better


def test_a_rejection_without_a_database_is_on_the_card_and_in_a_later_history(
    cases: list[Case], trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    version = save_background_only(registry, trained)
    is_promoted, reason = publish(registry, version, cases[2:], tmp_path)
    assert not is_promoted
    assert reason.startswith("there is no active model; mean DSC 0.000 on 1 cases is below the 0.5")
    assert registry.published_version() is None
    promotion = recorded(registry, version)
    assert (promotion["decision"], promotion["reason"], promotion["by"]) == (
        "rejected", reason, "apps.train",
    )  # fmt: skip
    evaluated = candidate_from_files(registry, version)
    assert (evaluated.decision, evaluated.reason) == ("rejected", reason)


def test_without_an_evaluation_case_nothing_is_promoted(
    trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    is_promoted, reason = publish(registry, save_trained(registry, trained), [], tmp_path)
    assert (is_promoted, reason[:26]) == (False, "no usable evaluation case:")


def test_the_workflow_database_gives_the_settings_and_keeps_the_record(
    cases: list[Case], trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    database = Database(tmp_path / FOLDER / FILE)
    Settings(database, RetrainConfig()).change({"min_first_dsc": 0.0}, by="admin")
    version = save_trained(registry, trained)
    is_promoted, reason = publish(registry, version, cases[2:], tmp_path)
    assert is_promoted
    models = ModelHistory(database)
    row = models.get(version)
    assert row is not None
    assert (row.decision, row.reason, row.pending) == ("promoted", reason, None)
    assert row.labels_seen == 2
    assert set(row.report["cases"]) == {"case_2"}
    assert [(p.version, p.by) for p in models.promotions()] == [(version, "apps.train")]
    database.close()


def test_the_database_of_another_model_folder_records_nothing(
    cases: list[Case], trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    other = Registry(tmp_path / "other")
    database = Database(tmp_path / FOLDER / FILE)
    models = ModelHistory(database)
    models.record(candidate_from_files(other, save_background_only(other, trained)))
    version = save_trained(registry, trained)
    publish(registry, version, cases[2:], tmp_path)
    assert models.get(version) is None
    assert models.promotions() == []
    assert "decision" in recorded(registry, version)
    database.close()


def evaluated(
    registry: Registry, trained: TrainedModel, tmp_path: Path, difference: float
) -> tuple[bool, str, int]:
    """Evaluate a candidate whose DSC on six cases differ from those of the active model.

    The DSC are stored before, so that no case is contoured; return the decision and the cases in its report.
    """
    cases = []
    for number in range(6):
        file = tmp_path / f"case_{number}"
        file.write_text(str(number), encoding="utf-8")
        cases.append(Case(file.name, file, file))
    database = Database(tmp_path / FOLDER / FILE)
    models = ModelHistory(database)
    scores = CaseScores(tmp_path / "scores", device="cpu")
    active, candidate = save_background_only(registry, trained), save_trained(registry, trained)
    registry.publish(active, reason="by hand")
    for version, change in ((active, 0.0), (candidate, difference)):
        model = load_model(registry.weights_path(version))
        for number, case in enumerate(cases):
            scores.of(model).put(case, {"Brainstem": 0.7 + change + 0.001 * (number % 3)})
    promoter = Promoter(registry, models)
    promoter.record_external_changes()
    models.record(candidate_from_files(registry, candidate))
    evaluation = CandidateEvaluation(
        registry=registry, models=models, promoter=promoter, config=RetrainConfig(), device="cpu",
        scores=scores,
    )  # fmt: skip
    is_promoted, reason = evaluation.evaluate(candidate, cases)
    row = models.get(candidate)
    assert row is not None
    return is_promoted, reason, len(row.report["cases"])


def test_a_clearly_worse_candidate_is_rejected_after_a_few_cases(
    trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    is_promoted, reason, cases = evaluated(registry, trained, tmp_path, -0.2)
    assert not is_promoted
    assert "may be worse by more than 0.01" in reason
    assert reason.endswith(f"; {cases} of 6 evaluation cases were enough")
    assert 2 <= cases < 6


def test_a_better_candidate_is_evaluated_on_every_case(
    trained: TrainedModel, registry: Registry, tmp_path: Path
) -> None:
    is_promoted, reason, cases = evaluated(registry, trained, tmp_path, 0.1)
    assert (is_promoted, cases) == (True, 6)
    assert "were enough" not in reason
