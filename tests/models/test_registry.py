import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.errors import CheckpointError, NoModelError
from lib.models.registry import SERVED, Registry, load_model, save_model
from lib.models.served_model import ServedModel
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP, NetworkConfig

TINY = replace(OPENKBP, network=NetworkConfig(width=1))


def make_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    return save_model(folder, build_network(TINY).state_dict(), TINY, {"training": {"seed": seed}})


def test_a_saved_model_is_loaded_unchanged(tmp_path: Path) -> None:
    version = make_model(tmp_path, 3)
    model = load_model(tmp_path / f"{version}.safetensors")
    torch.manual_seed(3)
    for key, value in build_network(TINY).state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value), key
    assert (model.version, model.recipe) == (version, TINY)
    assert model.card["training"] == {"seed": 3}
    assert not model.network.training


def test_a_model_of_a_recipe_without_augmentations_loads(tmp_path: Path) -> None:
    path = tmp_path / f"{make_model(tmp_path, 1)}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    del card["recipe"]["augment"]
    path.with_suffix(".json").write_text(json.dumps(card))
    assert load_model(path).recipe == TINY


def test_the_version_depends_on_the_weights(tmp_path: Path) -> None:
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
    with pytest.raises(NoModelError, match=r"there is no model yet.*POST /train/organnet25d"):
        ServedModel(Registry(tmp_path)).get()


def test_a_starter_of_another_organ_set_is_not_active(tmp_path: Path) -> None:
    starter = make_model(tmp_path / "starter", 1)
    folders = {"folder": tmp_path / "models", "starter": tmp_path / "starter"}
    fitting = Registry(**folders, organ_set=TINY.organ_set)
    assert fitting.served_path() == tmp_path / "starter" / f"{starter}.safetensors"
    assert Registry(**folders, organ_set="pddca").served_path() is None


def test_a_starter_without_a_readable_card_is_named_as_damaged(tmp_path: Path) -> None:
    starter = make_model(tmp_path / "starter", 1)
    (tmp_path / "starter" / f"{starter}.json").write_text("[]")
    registry = Registry(tmp_path / "models", starter=tmp_path / "starter", organ_set=TINY.organ_set)
    with pytest.raises(CheckpointError, match=f"{starter}.safetensors: the model's card"):
        ServedModel(registry).get()


def test_a_starter_is_active_until_a_model_is_published(tmp_path: Path) -> None:
    starter = make_model(tmp_path / "starter", 1)
    registry = Registry(tmp_path / "models", starter=tmp_path / "starter")
    served = ServedModel(registry)
    assert served.get().version == starter
    version = make_model(registry.folder, 2)
    assert served.get().version == starter
    registry.publish(version, reason="better")
    assert served.get().version == version


def test_the_last_model_stays_active_if_a_new_one_is_damaged(
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
    assert f"{good} stays the active model" in caplog.text
    assert served.get().version == good


def test_an_incomplete_pointer_does_not_publish(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    (tmp_path / SERVED).write_text('{"vers')
    assert registry.published_version() is None


def promote(registry: Registry, *seeds: int) -> list[str]:
    """Publish several models in turn; return their versions in that order."""
    versions = [make_model(registry.folder, seed) for seed in seeds]
    for version in versions:
        registry.publish(version, reason=f"better than before {version}")
    return versions


def test_promotions_are_listed_newest_first(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.promoted() == []
    first, second, third = promote(registry, 1, 2, 3)
    assert registry.promoted() == [third, second, first]
    assert registry.published_version() == third
    entry = json.loads((tmp_path / SERVED).read_text())["promoted"][2]
    assert entry["version"] == first
    assert entry["reason"] == f"better than before {first}"


def test_the_number_of_listed_promotions_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.models.registry.PROMOTED_KEPT", 2)
    registry = Registry(tmp_path)
    _, second, third = promote(registry, 1, 2, 3)
    assert registry.promoted() == [third, second]


def test_a_rollback_removes_later_promotions_from_the_list(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second, _ = promote(registry, 1, 2, 3)
    registry.publish(second, reason="the third was worse")
    assert registry.promoted() == [second, first]
    registry.publish(second, reason="again")
    assert registry.promoted() == [second, first]


def test_a_pointer_without_a_list_counts_as_one_promotion(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    old, new = make_model(tmp_path, 1), make_model(tmp_path, 2)
    (tmp_path / SERVED).write_text(json.dumps({"version": old, "since": "then", "reason": "first"}))
    assert registry.promoted() == [old]
    registry.publish(new, reason="better")
    assert registry.promoted() == [new, old]


@pytest.mark.parametrize("listed", ["none", [], [3, None], {"a": 1}, [{"version": "other"}]])
def test_a_damaged_list_leaves_the_active_version(tmp_path: Path, listed: object) -> None:
    (tmp_path / SERVED).write_text(json.dumps({"version": "served", "promoted": listed}))
    assert Registry(tmp_path).promoted() == ["served"]


def test_the_last_k_promoted_models_are_those_before_the_active_one(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second, third, fourth = promote(registry, 1, 2, 3, 4)
    served = ServedModel(registry).get()
    assert served.version == fourth
    older, notes = registry.earlier(served, 2)
    assert [m.version for m in older] == [third, second]
    assert notes == []
    older, _ = registry.earlier(load_model(tmp_path / f"{third}.safetensors"), 5)
    assert [m.version for m in older] == [second, first]
    assert registry.earlier(served, 0) == ([], [])


def test_damaged_missing_and_incompatible_older_models_are_skipped_with_a_note(
    tmp_path: Path,
) -> None:
    registry = Registry(tmp_path)
    first, damaged, gone = promote(registry, 1, 2, 3)
    finer = replace(TINY, name="finer", spacing_mm=(1.0, 1.0, 1.0))
    other = save_model(tmp_path, build_network(finer).state_dict(), finer, {})
    registry.publish(other, reason="by hand")
    (served,) = promote(registry, 5)
    (tmp_path / f"{damaged}.safetensors").write_bytes(b"\0" * 100)
    (tmp_path / f"{gone}.safetensors").unlink()
    older, notes = registry.earlier(load_model(tmp_path / f"{served}.safetensors"), 2)
    assert [m.version for m in older] == [first]
    assert [note.split()[0] for note in notes] == [other, gone, damaged]
    assert "has other organs or another preprocessing" in notes[0]
    assert "cannot be read" in notes[1]
    assert "not those that the card describes" in notes[2]
