import json
import threading
from pathlib import Path
from typing import Any

import pytest

import lib.models.served_model
from lib.errors import CheckpointError
from lib.models.registry import SERVED, Registry, load_model
from lib.models.served_model import ServedModel
from tests.models.test_registry import make_model, promote
from tests.waiting import LIMIT_S


def damage(folder: Path, version: str) -> bytes:
    path = folder / f"{version}.safetensors"
    content = path.read_bytes()
    path.write_bytes(b"\0" * 100)
    return content


def test_the_previous_model_replaces_a_damaged_one_also_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    first, second, third = promote(registry, 1, 2, 3)
    content = damage(tmp_path, third)
    damage(tmp_path, second)
    served = ServedModel(registry)
    assert served.get().version == first
    assert served.fallback_reason is not None
    assert served.fallback_reason.startswith(f"{third}.safetensors: the weights are not those")
    assert served.fallback_reason.endswith(f"{first} stays the active model")
    assert served.fallback_reason in caplog.text
    # Restored from a backup, it is active again without a restart.
    (tmp_path / f"{third}.safetensors").write_bytes(content)
    assert served.get().version == third
    assert served.fallback_reason is None


def test_the_starter_is_used_if_no_promoted_model_loads(tmp_path: Path) -> None:
    starter = make_model(tmp_path / "starter", 1)
    registry = Registry(tmp_path / "models", starter=tmp_path / "starter")
    (only,) = promote(registry, 2)
    damage(registry.folder, only)
    served = ServedModel(registry)
    assert served.get().version == starter
    damage(tmp_path / "starter", starter)
    assert served.get().version == starter
    with pytest.raises(CheckpointError, match=only):
        ServedModel(registry).get()


@pytest.mark.parametrize("content", ['{"vers', "[]", "null", "", '{"version": "missing"}', None])
def test_with_a_damaged_or_missing_pointer_the_last_model_stays_active(
    tmp_path: Path, content: str | None
) -> None:
    make_model(tmp_path / "starter", 9)
    registry = Registry(tmp_path / "models", starter=tmp_path / "starter")
    first, second = promote(registry, 1, 2)
    served = ServedModel(registry)
    assert served.get().version == second
    if content is None:
        (registry.folder / SERVED).unlink()
    else:
        (registry.folder / SERVED).write_text(content)
    assert served.get().version == second
    assert served.fallback_reason is not None
    registry.publish(first, reason="again")
    assert served.get().version == first
    assert served.fallback_reason is None


@pytest.mark.parametrize(
    "change",
    [{"recipe": None}, {"recipe": []}, {"recipe": "tiny"}, {"recipe": {}}, {"sha256": 3}],
)
def test_any_invalid_card_is_a_damaged_model(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / f"{make_model(tmp_path, 1)}.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, **change}))
    with pytest.raises(CheckpointError):
        load_model(path)


def test_other_threads_use_the_previous_model_while_one_loads_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    (old,) = promote(registry, 1)
    served = ServedModel(registry)
    served.get()
    is_loading, may_end = threading.Event(), threading.Event()

    def slowly(path: Path, device: str = "cpu") -> Any:
        is_loading.set()
        assert may_end.wait(LIMIT_S)
        return load_model(path, device)

    monkeypatch.setattr(lib.models.served_model, "load_model", slowly)
    (new,) = promote(registry, 2)
    versions: list[str] = []
    loader = threading.Thread(target=lambda: versions.append(served.get().version))
    loader.start()
    assert is_loading.wait(LIMIT_S)
    assert served.get().version == old
    patient = threading.Thread(target=lambda: versions.append(served.get(is_newest=True).version))
    patient.start()
    may_end.set()
    loader.join(LIMIT_S)
    patient.join(LIMIT_S)
    assert versions == [new, new]
    assert served.get().version == new


def test_a_loaded_model_stays_in_memory(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    promote(registry, 1)
    served = ServedModel(registry)
    first = served.get()
    assert served.get() is first
