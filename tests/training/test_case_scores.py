from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lib.models.registry import Model
from lib.networks.build import build_network
from lib.training.case_scores import CaseScores
from lib.training.cases import Case
from lib.training.validate import validate
from tests.tiny import TINY


def model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model("v", build_network(TINY).eval(), TINY, {})


@pytest.fixture
def scores(tmp_path: Path) -> CaseScores:
    return CaseScores(tmp_path / "scores", device="cpu")


def contoured(
    model: Model, cases: list[Case], scores: CaseScores
) -> tuple[int, Mapping[str, Mapping[str, float]]]:
    """Return how many cases were contoured, and the DSC of all."""
    calls: list[None] = []
    result = validate(
        model, cases, device="cpu", scores=scores, before_each=lambda: calls.append(None)
    )
    return len(calls), result.per_case


def test_a_model_is_evaluated_once_on_each_case(cases: list[Case], scores: CaseScores) -> None:
    plain = validate(model(), cases[:2], device="cpu").per_case
    assert contoured(model(), cases[:1], scores) == (
        1,
        {cases[0].image_id: plain[cases[0].image_id]},
    )
    assert contoured(model(), cases[:2], scores) == (1, plain)
    assert contoured(model(), cases[:2], scores) == (0, plain)


def test_other_weights_and_another_label_are_evaluated(
    cases: list[Case], scores: CaseScores
) -> None:
    contoured(model(), cases[:1], scores)
    assert contoured(model(seed=1), cases[:1], scores)[0] == 1
    other = Case(cases[0].image_id, cases[0].image, cases[1].label)
    assert scores.of(model()).get(other) is None


def test_a_damaged_file_is_computed_again(
    cases: list[Case], scores: CaseScores, tmp_path: Path
) -> None:
    expected = contoured(model(), cases[:1], scores)
    (file,) = (tmp_path / "scores").iterdir()
    for damage in ("", "[1, 2]", '{"Brainstem": "x"}'):
        file.write_text(damage, encoding="utf-8")
        assert contoured(model(), cases[:1], scores) == expected


def test_a_validation_that_is_killed_continues_with_the_next_case(
    cases: list[Case], scores: CaseScores
) -> None:
    def die_at_the_second() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    calls: list[None] = []
    with pytest.raises(KeyboardInterrupt):
        validate(model(), cases[:2], device="cpu", scores=scores, before_each=die_at_the_second)
    assert contoured(model(), cases[:2], scores)[0] == 1


def test_a_decided_validation_ends(cases: list[Case]) -> None:
    result = validate(model(), cases, device="cpu", is_decided=lambda so_far: len(so_far) == 1)
    assert list(result.per_case) == [cases[0].image_id]
