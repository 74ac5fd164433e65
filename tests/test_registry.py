import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.errors import CheckpointError, NoModelError
from lib.networks.build import build_network
from lib.recipes import OPENKBP, NetworkConfig
from lib.registry import SERVED, Registry, ServedModel, load_model, save_model

TINY = replace(OPENKBP, network=NetworkConfig(width=1))


def make_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    return save_model(folder, build_network(TINY).state_dict(), TINY, {"training": {"seed": seed}})


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    version = make_model(tmp_path, 3)
    model = load_model(tmp_path / f"{version}.safetensors")
    torch.manual_seed(3)
    for key, value in build_network(TINY).state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value), key
    assert (model.version, model.recipe) == (version, TINY)
    assert model.card["training"] == {"seed": 3}
    assert not model.network.training


def test_a_model_from_before_recipes_had_augmentations_still_loads(tmp_path: Path) -> None:
    path = tmp_path / f"{make_model(tmp_path, 1)}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    del card["recipe"]["augment"]
    path.with_suffix(".json").write_text(json.dumps(card))
    assert load_model(path).recipe == TINY


def test_version_names_the_weights(tmp_path: Path) -> None:
    assert make_model(tmp_path, 1) == make_model(tmp_path, 1)
    assert make_model(tmp_path, 1) != make_model(tmp_path, 2)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    weights = build_network(TINY).state_dict()
    weights["head.bias"][0] = torch.nan
    with pytest.raises(CheckpointError, match=r"head.bias are not finite; the run has diverged"):
        save_model(tmp_path, weights, TINY, {})
    assert not list(tmp_path.iterdir())


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{make_model(tmp_path, 1)}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not those that the card describes"):
        load_model(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{make_model(tmp_path, 1)}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    card["recipe"]["network"]["width"] = 2
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="does not fit its recipe's network"):
        load_model(path)


def test_without_any_model_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NoModelError, match=r"no model is served yet.*POST /train/organnet25d"):
        ServedModel(Registry(tmp_path)).get()


def test_a_starter_serves_until_a_model_is_published(tmp_path: Path) -> None:
    starter = make_model(tmp_path / "starter", 1)
    registry = Registry(tmp_path / "models", starter=tmp_path / "starter")
    served = ServedModel(registry)
    assert served.get().version == starter
    version = make_model(registry.folder, 2)
    assert served.get().version == starter
    registry.publish(version, reason="better")
    assert served.get().version == version


def test_the_last_good_model_goes_on_serving_when_a_new_one_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    good, bad = make_model(tmp_path, 1), make_model(tmp_path, 2)
    registry.publish(good, reason="first")
    served = ServedModel(registry)
    assert served.get().version == good
    (tmp_path / f"{bad}.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError):
        registry.publish(bad, reason="damaged")
    assert registry.published_version() == good
    (tmp_path / SERVED).write_text(json.dumps({"version": bad}))
    assert served.get().version == good
    assert f"{good} goes on serving" in caplog.text
    assert served.get().version == good


def test_a_half_written_pointer_is_no_publication(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    (tmp_path / SERVED).write_text('{"vers')
    assert registry.published_version() is None
