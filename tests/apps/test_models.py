import json
from pathlib import Path
from typing import Any

import pytest
import torch

from apps import models
from lib.models.registry import Registry, save_model
from lib.networks.build import build_network
from tests.tiny import TINY


def make_model(folder: Path, seed: int, **card: Any) -> str:
    torch.manual_seed(seed)
    return save_model(folder, build_network(TINY).state_dict(), TINY, {"training": {}, **card})


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """The flags of a studies folder, a model folder and a starter."""
    (tmp_path / "studies").mkdir()
    make_model(tmp_path / "starter", 0, training={"cases": ["pt_1", "pt_2"]})
    return ["--studies", str(tmp_path / "studies"), "--model-dir", str(tmp_path / "models"),
            "--starter-dir", str(tmp_path / "starter"), "--by", "ann"]  # fmt: skip


def found(places: list[str], capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    assert models.main([*places, "--json", *command]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_starter_shows_as_such_and_serves(
    places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = found(places, capsys, "list")
    (row,) = listed["models"]
    assert (row["is_starter"], row["is_served"], row["labels_seen"]) == (True, True, 2)
    assert models.main([*places, "list"]) == 0
    said = capsys.readouterr().out
    assert "the starter" in said
    assert f"* active model: {row['version']}" in said


def test_promote_compare_show_rollback_and_prune(
    tmp_path: Path, places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    a, b = (
        make_model(folder, seed, validation={"organ_dice": {"Larynx": dice}})
        for seed, dice in ((1, 0.5), (2, 0.75))
    )
    for version in (a, b):
        assert models.main([*places, "promote", version, "--reason", "better"]) == 0
    assert f"{b} is the active model from the next request on" in capsys.readouterr().out
    assert Registry(folder).published_version() == b
    assert models.main([*places, "compare", a, b]) == 0
    said = capsys.readouterr().out
    assert "Larynx" in said
    assert "0.500" in said
    assert "0.250" in said
    assert "recipe: the same" in said
    assert models.main([*places, "show", b]) == 0
    said = capsys.readouterr().out
    assert "better" in said
    assert "active since" in said
    assert found(places, capsys, "show", b)["promotions"][0]["by"] == "ann"
    assert found(places, capsys, "rollback", "--reason", "odd") == {"served": a}
    assert found(places, capsys, "prune", "--keep", "1") == {"pruned": [b]}
    assert models.main([*places, "prune", "--keep", "1"]) == 0
    assert "nothing to prune" in capsys.readouterr().out
    rows = {row["version"]: row for row in found(places, capsys, "list")["models"]}
    assert rows[b]["pruned_at"] is not None
    assert rows[a]["is_served"]


def test_what_cannot_be_done_is_said_in_one_line(
    tmp_path: Path, places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command, why in [
        (["show", "nobody"], "'nobody': no model has that version"),
        (["promote", "../x", "--reason", ""], "'../x': no model has that version"),
        (["rollback"], "no version to roll back to"),
        (["prune", "--keep", "-1"], "--keep: -1 is below 0"),
    ]:
        assert models.main([*places, *command]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert why in said
        assert said.count("\n") == 1
    assert models.main(["--model-dir", str(tmp_path / "other"), "list"]) == 1
    assert "--studies is missing: give the studies folder" in capsys.readouterr().err
    assert models.main(["--studies", str(tmp_path / "none"), "list"]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "other").exists()
