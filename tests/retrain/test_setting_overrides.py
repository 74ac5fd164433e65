import pytest

from lib.config import RetrainConfig
from lib.errors import ConfigError
from lib.retrain.setting_overrides import Settings
from lib.storage.database import Database

START = RetrainConfig(min_new_labels=7)


def test_a_change_outlives_the_server_and_can_be_taken_back(database: Database) -> None:
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
        ({"quiet_s": -1}, "quiet_s must be at least 0"),
        ({"quiet_s": float("nan")}, "quiet_s must be at least 0"),
        ({"promotion_confidence": 1}, "promotion_confidence must be from 0.5"),
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
