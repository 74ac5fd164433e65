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
def folders(tmp_path: Path) -> list[str]:
    """The flags of a studies folder, a model folder and a starter."""
    (tmp_path / "studies").mkdir()
    make_model(tmp_path / "starter", 0, training={"cases": ["pt_1", "pt_2"]})
    return ["--studies", str(tmp_path / "studies"), "--model-dir", str(tmp_path / "models"),
            "--starter-dir", str(tmp_path / "starter"), "--by", "ann"]  # fmt: skip


def json_output(folders: list[str], capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    assert models.main([*folders, "--json", *command]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_starter_is_listed_as_the_active_model(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json_output(folders, capsys, "list")
    (row,) = listed["models"]
    assert (row["is_starter"], row["is_served"], row["labels_seen"]) == (True, True, 2)
    assert models.main([*folders, "list"]) == 0
    output = capsys.readouterr().out
    assert "the starter" in output
    assert f"* active model: {row['version']}" in output


def test_promote_compare_show_rollback_and_prune(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models"
    a, b = (
        make_model(folder, seed, validation={"organ_dice": {"Larynx": dice}})
        for seed, dice in ((1, 0.5), (2, 0.75))
    )
    for version in (a, b):
        assert models.main([*folders, "promote", version, "--reason", "better"]) == 0
    assert f"{b} is the active model from the next request on" in capsys.readouterr().out
    assert Registry(folder).published_version() == b
    assert models.main([*folders, "compare", a, b]) == 0
    output = capsys.readouterr().out
    assert "Larynx" in output
    assert "0.500" in output
    assert "0.250" in output
    assert "recipe: the same" in output
    assert models.main([*folders, "show", b]) == 0
    output = capsys.readouterr().out
    assert "better" in output
    assert "active since" in output
    assert json_output(folders, capsys, "show", b)["promotions"][0]["by"] == "ann"
    assert json_output(folders, capsys, "rollback", "--reason", "odd") == {"served": a}
    assert json_output(folders, capsys, "prune", "--keep", "1") == {"pruned": [b]}
    assert models.main([*folders, "prune", "--keep", "1"]) == 0
    assert "nothing to prune" in capsys.readouterr().out
    rows = {row["version"]: row for row in json_output(folders, capsys, "list")["models"]}
    assert rows[b]["pruned_at"] is not None
    assert rows[a]["is_served"]


def test_each_error_is_reported_in_one_line(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command, why in [
        (["show", "unknown"], "'unknown': no model has that version"),
        (["promote", "../x", "--reason", ""], "'../x': no model has that version"),
        (["rollback"], "no version to roll back to"),
        (["prune", "--keep", "-1"], "--keep: -1 is below 0"),
    ]:
        assert models.main([*folders, *command]) == 1
        output = capsys.readouterr().err
        assert output.startswith("error: ")
        assert why in output
        assert output.count("\n") == 1
    assert models.main(["--model-dir", str(tmp_path / "other"), "list"]) == 1
    assert "--studies is missing: give the studies folder" in capsys.readouterr().err
    assert models.main(["--studies", str(tmp_path / "none"), "list"]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "other").exists()


def test_the_starter_is_exported_as_onnx_with_the_asked_opset(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    (starter,) = (tmp_path / "starter").glob("*.safetensors")
    file = tmp_path / "network.onnx"
    assert (
        models.main([*folders, "export", starter.stem, "--output", str(file), "--opset", "16"]) == 0
    )
    assert f"wrote {file}" in capsys.readouterr().out
    exported = onnx.load(str(file))
    assert exported.opset_import[0].version == 16
    about = {entry.key: entry.value for entry in exported.metadata_props}
    assert about["version"] == starter.stem
    assert json.loads(about["organs"]) == dict(TINY.labels)


def test_an_export_needs_a_file_name_of_onnx(
    tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.main([*folders, "export", "x", "--output", str(tmp_path / "network.pt")]) == 1
    assert "network.pt does not end with .onnx" in capsys.readouterr().err
