import pytest

from tests.server.running import Server, put_case

pytestmark = pytest.mark.server


def test_infer_without_a_model_says_how_to_get_one(bare_server: Server) -> None:
    put_case(bare_server, "waiting")
    assert "waiting" in bare_server.images()
    before = bare_server.disk()
    answer = bare_server.ask("POST", "/infer/organnet25d?image=waiting")
    assert answer.status_code == 409
    assert "there is no model yet" in answer.json()["detail"]
    assert "POST /train/organnet25d" in answer.json()["detail"]
    assert bare_server.disk() == before


def test_info_lists_trainers_and_strategies_but_no_model_before_a_promotion(
    bare_server: Server,
) -> None:
    info = bare_server.ask("GET", "/info/").json()
    assert info["models"] == {}
    assert set(info["trainers"]) == {"organnet25d"}
    assert {"first", "random"} <= set(info["strategies"])
    assert info["labels"]["Brainstem"] == 1
    assert info["train_stats"] == {"organnet25d": {}}


def test_training_with_too_few_cases_says_how_many_are_needed(bare_server: Server) -> None:
    answer = bare_server.ask("POST", "/train/organnet25d", json={})
    assert answer.status_code == 409
    assert "final label" in answer.json()["detail"]
    assert bare_server.ask("GET", "/train/").status_code == 404
