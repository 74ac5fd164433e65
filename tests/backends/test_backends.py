"""The backends against PyTorch's own float32 computation of the same network."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib.backends.eager import EagerBackend, Precision
from lib.backends.interface import windows_at_once
from lib.backends.onnx_files import export_onnx
from lib.backends.openvino import OpenVinoBackend, openvino_precisions
from lib.errors import ExportError
from lib.models.registry import Model
from lib.networks.build import build_network, size_divisor
from lib.recipes.schema import OPENKBP, NetworkConfig, NetworkName, Recipe

RECIPE = replace(OPENKBP, network=NetworkConfig(width=4), crop_vox=(16, 16, 16))


def make_model(recipe: Recipe = RECIPE) -> Model:
    """Return a model with random weights, whose batch normalisation is not the identity."""
    torch.manual_seed(3)
    network = build_network(recipe).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean = torch.randn_like(module.running_mean) * 0.1  # type: ignore[arg-type]
            module.running_var = torch.rand_like(module.running_var) + 0.5  # type: ignore[arg-type]
    return Model("made-up-1", network, recipe, {"sha256": "ab" * 32})


def make_windows(number: int, size: tuple[int, int, int] = (16, 16, 16)) -> torch.Tensor:
    torch.manual_seed(4)
    return torch.rand(number, 2, *size) * 2 - 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    model = make_model()
    path = tmp_path_factory.mktemp("onnx") / "made-up-1.onnx"
    export_onnx(model, path)
    return model, path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_eager_float32_is_the_network_itself(number: int) -> None:
    model, windows = make_model(), make_windows(number)
    with torch.inference_mode():
        expected = model.network(windows)
    actual = EagerBackend(model.network, "cpu").run(windows)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_eager_in_half_precision_is_near_and_returns_float32(precision: Precision) -> None:
    model, windows = make_model(), make_windows(2)
    with torch.inference_mode():
        expected = model.network(windows)
    backend = EagerBackend(model.network, "cpu", precision)
    actual = backend.run(windows)
    assert backend.name == f"eager-{precision}"
    assert actual.dtype is torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)


def test_a_large_window_is_computed_alone_and_small_ones_four_at_once() -> None:
    assert windows_at_once((48, 48, 48)) == 4
    assert windows_at_once((96, 96, 64)) == 1
    assert windows_at_once((256, 256, 48)) == 1


@pytest.mark.parametrize("number", [1, 3, 4])
@pytest.mark.parametrize("size", [(16, 16, 16), (12, 20, 6)])
def test_openvino_computes_windows_of_any_number_and_size(
    exported: tuple[Model, Path], number: int, size: tuple[int, int, int]
) -> None:
    model, path = exported
    windows = make_windows(number, size)
    with torch.inference_mode():
        expected = model.network(windows)
    for threads in (1, 2):
        actual = OpenVinoBackend(path, precision="f32", threads=threads).run(windows)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_openvino_in_bfloat16_is_near(exported: tuple[Model, Path]) -> None:
    if "bf16" not in openvino_precisions():
        pytest.skip("this processor has no bfloat16")
    model, path = exported
    windows = make_windows(2)
    with torch.inference_mode():
        expected = model.network(windows)
    actual = OpenVinoBackend(path, precision="bf16", threads=2).run(windows)
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)


def test_onnxruntime_computes_the_exported_file_with_free_sizes(
    exported: tuple[Model, Path],
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("image", ["window", 2, "x", "y", "z"])
    assert (logits.name, logits.shape[1]) == ("logits", 8)
    for number, size in ((1, (16, 16, 16)), (2, (8, 24, 4))):
        windows = make_windows(number, size)
        with torch.inference_mode():
            expected = model.network(windows).numpy()
        (actual,) = session.run(None, {"image": windows.numpy()})
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_exported_file_says_how_to_prepare_a_ct_and_what_the_output_means(
    exported: tuple[Model, Path],
) -> None:
    onnx = pytest.importorskip("onnx")
    file = onnx.load(str(exported[1]))
    about = {entry.key: entry.value for entry in file.metadata_props}
    assert about["version"] == "made-up-1"
    assert about["sha256"] == "ab" * 32
    assert json.loads(about["organs"])["Bone_Mandible"] == 7
    assert json.loads(about["spacing_mm"]) == [3.906, 3.906, 2.5]
    assert json.loads(about["hu_windows"]) == [[-160.0, 240.0], [-300.0, 1200.0]]
    assert json.loads(about["window_vox"]) == [16, 16, 16]
    assert json.loads(about["size_divisor"]) == [4, 4, 2]
    assert file.opset_import[0].version == 17


@pytest.mark.parametrize("name", ["segresnet"])
def test_peers_can_be_exported_too(tmp_path: Path, name: NetworkName) -> None:
    recipe = replace(RECIPE, network=NetworkConfig(name=name, width=8))
    model = make_model(recipe)
    size = tuple(-(-16 // step) * step for step in size_divisor(recipe))
    windows = make_windows(1, (size[0], size[1], size[2]))
    export_onnx(model, tmp_path / "peer.onnx")
    with torch.inference_mode():
        expected = model.network(windows)
    actual = OpenVinoBackend(tmp_path / "peer.onnx", precision="f32", threads=2).run(windows)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


class Unexportable(nn.Module):
    """A network with a layer that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        real: torch.Tensor = torch.fft.fftn(x).real
        return real + self.weight


def test_a_network_that_cannot_be_exported_is_an_error_with_its_version(tmp_path: Path) -> None:
    model = replace(make_model(), network=Unexportable())
    with pytest.raises(ExportError, match="made-up-1: cannot be exported as ONNX with opset 17"):
        export_onnx(model, tmp_path / "none.onnx")
    assert list(tmp_path.iterdir()) == []
