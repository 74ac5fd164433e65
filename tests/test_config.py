import inspect
from pathlib import Path

import pytest

from lib.config import AppConfig, RetrainConfig, is_loopback
from lib.errors import ConfigError
from lib.recipes.schema import OPENKBP, PDDCA


def test_without_settings_the_defaults_are_used() -> None:
    config = AppConfig.from_conf({})
    assert (config.recipe, config.access) == (OPENKBP, "local")
    assert config.device in ("cpu", "cuda")
    assert (config.lease_minutes, config.consensus) == (120, "staple")
    assert config.model_dir.is_relative_to(Path(__file__).parents[1] / "model")


def test_settings_are_taken(tmp_path: Path) -> None:
    conf = {"recipe": "pddca", "model_dir": str(tmp_path / "a" / ".."), "device": "cpu",
            "access": "network"}  # fmt: skip
    config = AppConfig.from_conf(conf)
    assert (config.recipe, config.device, config.access) == (PDDCA, "cpu", "network")
    assert config.model_dir == tmp_path.resolve()


def test_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "clinic.yaml"
    path.write_text("extends: openkbp\nname: clinic\n")
    assert AppConfig.from_conf({"recipe": str(path)}).recipe.name == "clinic"


@pytest.mark.parametrize("key", ["server_mode", "models", "preload"])
def test_keys_of_monai_label_are_ignored(key: str) -> None:
    assert AppConfig.from_conf({key: "true"}) == AppConfig.from_conf({})


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (
            {"recepie": "pddca"},
            "--conf recepie: no such setting; the settings are access, auto_retrain",
        ),
        ({"recipe": "nothing"}, "'nothing' is neither a known recipe"),
        ({"access": "all"}, "--conf access: 'all': Input should be 'local' or 'network'"),
        ({"min_new_labels": "few"}, "min_new_labels: 'few'"),
        ({"quiet_s": "-1"}, "quiet_s must be finite and at least 0"),
        ({"lease_minutes": "0"}, "--conf lease_minutes: '0': Input should be greater than 0"),
        ({"lease_minutes": "nan"}, "--conf lease_minutes: 'nan': Input should be a finite number"),
        ({"lease_minutes": "long"}, "--conf lease_minutes: 'long': Input should be a valid number"),
        ({"consensus": "mean"}, "--conf consensus: 'mean': Input should be 'staple' or 'majority'"),
        ({"device": "toaster"}, "--conf device: 'toaster' is not a device"),
    ],
)
def test_wrong_settings_are_refused(conf: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AppConfig.from_conf(conf)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, *, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours


def test_settings_of_retraining_are_read_from_text() -> None:
    conf = {"auto_retrain": "off", "min_new_labels": "3", "quiet_s": "0.5"}
    retrain = AppConfig.from_conf(conf).retrain
    assert (retrain.auto_retrain, retrain.min_new_labels, retrain.quiet_s) == (False, 3, 0.5)
    assert retrain.max_wait_s == RetrainConfig().max_wait_s


def test_settings_are_changed_without_parsing_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    # pydantic parses it when it builds a validator, which fails when several threads do so at once.
    def refuse(_: object) -> None:
        raise AssertionError("the source is parsed for a request")

    monkeypatch.setattr(inspect, "findsource", refuse)
    assert RetrainConfig().changed({"min_new_labels": "7"}).min_new_labels == 7
