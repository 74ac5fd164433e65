"""The choice of the backend with a real self-test in a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.config import BackendSetting
from lib.inference.backend_choice import BackendChoice
from lib.inference.single_pass import contour
from lib.models.registry import Registry, save_model
from lib.models.served_model import ServedModel
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP, NetworkConfig
from tests.phantoms import make_ct
from tests.waiting import wait_until

RECIPE = replace(
    OPENKBP,
    name="tiny",
    spacing_mm=(20.0, 20.0, 20.0),
    spacing_tolerance=0.0,
    crop_vox=(16, 16, 16),
    network=NetworkConfig(width=2),
)
NOT_YET = "the self-test of this version has not ended yet"


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    torch.manual_seed(0)
    registry = Registry(tmp_path / "models")
    version = save_model(registry.folder, build_network(RECIPE).state_dict(), RECIPE, {})
    registry.publish(version, reason="test")
    return ServedModel(registry)


@contextmanager
def choosing(served: ServedModel, setting: BackendSetting) -> Iterator[BackendChoice]:
    folder = served.registry.folder.parent
    choice = BackendChoice(
        folder / "backends", served, setting=setting, state=folder, scans=lambda: []
    )
    choice.start()
    try:
        yield choice
    finally:
        choice.stop()


def test_float32_serves_until_the_self_test_has_ended_and_then_the_backend_that_agrees(
    served: ServedModel,
) -> None:
    model, ct = served.get(), make_ct()
    with choosing(served, "openvino") as choice:
        assert choice.choice_for(model.version).reason == NOT_YET
        first = choice.backend_of(model)
        assert first.name == "eager"
        wait_until(
            lambda: choice.choice_for(model.version).reason != NOT_YET, "the self-test has ended"
        )
        assert choice.choice_for(model.version).reason == "set by --conf backend"
        backend = choice.backend_of(model)
        assert backend.name == "openvino"
        expected, actual = contour(ct, model, backend=first), contour(ct, model, backend=backend)
        assert (expected.label.array == actual.label.array).mean() > 0.999
    (record,) = (served.registry.folder.parent / "backends").glob("*.json")
    stamp = record.stat().st_mtime_ns
    # The next server on this machine uses the result.
    with choosing(served, "openvino") as choice:
        choice.backend_of(model)
        wait_until(lambda: choice.backend_of(model).name == "openvino", "the result is read")
    assert record.stat().st_mtime_ns == stamp


def test_a_self_test_that_dies_leaves_float32_and_is_repeated_at_the_next_start(
    served: ServedModel,
) -> None:
    model = served.get()
    weights = served.registry.weights_path(model.version)
    content = weights.read_bytes()
    weights.write_bytes(b"damaged")
    with choosing(served, "auto") as choice:
        assert choice.backend_of(model).name == "eager"
        wait_until(
            lambda: choice.choice_for(model.version).reason != NOT_YET, "the self-test has ended"
        )
        reason = choice.choice_for(model.version).reason
    assert reason.startswith("the self-test failed: its process ended with 1: ")
    assert "CheckpointError" in reason
    weights.write_bytes(content)
    with choosing(served, "openvino") as choice:
        choice.backend_of(model)
        wait_until(lambda: choice.backend_of(model).name == "openvino", "the self-test has ended")


def test_eager_needs_no_self_test(served: ServedModel) -> None:
    model = served.get()
    with choosing(served, "eager") as choice:
        assert choice.backend_of(model).name == "eager"
        assert choice.choice_for(model.version).reason == "set by --conf backend"
    assert not (served.registry.folder.parent / "backends").exists()
