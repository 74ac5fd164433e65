"""Agreement of backends by hand-made probabilities, and the choice among made-up measurements."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lib.backends.eager import EagerBackend
from lib.backends.interface import Backend
from lib.inference.preprocessing import Pipeline
from lib.inference.self_test import LOST_VOXELS, Measurement, choose, compare, measure
from lib.models.registry import Model
from lib.recipes.schema import OPENKBP
from tests.phantoms import SPACING_MM, make_ct

LABELS = {"Brainstem": 1, "SpinalCord": 2}
EAGER = Measurement("eager", 1.0, 1.0, 1.0)


def one_hot(values: Tensor) -> Tensor:
    return nn.functional.one_hot(values.long(), 3).permute(3, 0, 1, 2).float()


def label(*, brainstem: int = 0, cord: int = 0) -> Tensor:
    """Return a label volume with that many voxels of each organ."""
    values = torch.zeros(1000)
    values[:brainstem] = 1
    values[500 : 500 + cord] = 2
    return values.reshape(10, 10, 10)


def test_the_dsc_is_that_of_each_organ_in_each_scan() -> None:
    reference = [one_hot(label(brainstem=200, cord=200)), one_hot(label(brainstem=100))]
    output = [one_hot(label(brainstem=200, cord=198)), one_hot(label(brainstem=98))]
    result = compare("other", reference, output, LABELS)
    assert result.mean_dsc == pytest.approx((1 + 2 * 198 / 398 + 2 * 98 / 198) / 3)
    assert result.min_dsc == pytest.approx(2 * 98 / 198)
    assert result.lost == ()
    assert not result.agrees


def test_a_lost_organ_is_named_and_one_of_a_few_voxels_does_not_count() -> None:
    reference = [one_hot(label(brainstem=200, cord=12))]
    assert compare("x", reference, [one_hot(label(brainstem=200))], LABELS).lost == ("SpinalCord",)
    reference = [one_hot(label(brainstem=200, cord=9))]
    assert compare("x", reference, [one_hot(label(brainstem=200))], LABELS).agrees


def test_without_any_organ_the_probabilities_must_be_alike() -> None:
    reference = torch.tensor([0.9, 0.1, 0.0])[:, None, None, None].expand(3, 4, 4, 4)
    near = torch.tensor([0.87, 0.13, 0.0])[:, None, None, None].expand(3, 4, 4, 4)
    far = torch.tensor([0.8, 0.2, 0.0])[:, None, None, None].expand(3, 4, 4, 4)
    assert compare("near", [reference], [near], LABELS).agrees
    assert not compare("far", [reference], [far], LABELS).agrees


def test_the_fastest_backend_that_agrees_is_chosen() -> None:
    measurements = [
        EAGER,
        Measurement("openvino", 0.4, 0.9999, 0.999),
        Measurement("openvino-bf16", 0.2, 0.99, 0.97),
        Measurement("eager-bf16", error="no"),
    ]
    name, reason = choose(measurements)
    assert name == "openvino"
    assert "openvino-bf16 not usable (DSC against float32: mean 0.990, smallest 0.970)" in reason
    assert "eager-bf16 not usable (no)" in reason


def test_a_backend_that_is_hardly_faster_is_not_chosen() -> None:
    assert choose([EAGER, Measurement("openvino", 0.95, 1.0, 1.0)])[0] == "eager"


def test_one_backend_can_be_required_and_is_used_only_if_it_agrees() -> None:
    slow = Measurement("eager-bf16", 3.0, 0.999, 0.99)
    assert choose([EAGER, slow], "eager-bf16") == ("eager-bf16", "set by --conf backend")
    lost = replace(slow, lost=("Brainstem",))
    expected = ("eager", "eager-bf16 is not used: it does not find Brainstem")
    assert choose([EAGER, lost], "eager-bf16") == expected
    expected = ("eager", "this machine does not have the backend openvino")
    assert choose([EAGER, slow], "openvino") == expected


def test_half_precision_is_not_chosen_without_a_real_scan() -> None:
    measurements = [
        EAGER,
        Measurement("openvino", 0.4, 1.0, 1.0),
        Measurement("openvino-bf16", 0.2, 1.0, 1.0),
    ]
    assert choose(measurements, scans=1)[0] == "openvino-bf16"
    assert choose(measurements, scans=0)[0] == "openvino"


def test_a_doubtful_organ_whose_largest_region_changes_is_no_agreement() -> None:
    """Two regions of 4 x 10 x 10 voxels: a single voxel decides which one is the contour."""
    reference = torch.zeros(9, 10, 10)
    reference[:4], reference[5:] = 1, 1
    output = reference.clone()
    reference[0, 0, 0], output[8, 0, 0] = 0, 0
    result = compare("other", [one_hot(reference)], [one_hot(output)], LABELS)
    assert result.min_dsc == 0
    assert not result.agrees


class BoneIsMandible(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((image.shape[0], 8, *image.shape[2:]), -20.0)
        logits[:, 0], logits[:, 7] = -(image[:, 0] - 0.4) * 80, (image[:, 0] - 0.4) * 80
        return logits


class Nothing:
    name = "nothing"

    def run(self, windows: Tensor) -> Tensor:
        logits = torch.zeros(len(windows), 8, *windows.shape[2:])
        logits[:, 0] = 20
        return logits


class Broken:
    name = "broken"

    def run(self, windows: Tensor) -> Tensor:
        raise RuntimeError(f"cannot compute {tuple(windows.shape)}\nsecond line")


def test_backends_are_measured_in_turn_and_a_broken_one_is_no_error() -> None:
    recipe = replace(
        OPENKBP, spacing_mm=SPACING_MM, hu_windows=((-1000.0, 1000.0),), crop_vox=(12, 12, 8)
    )
    model = Model("bone", BoneIsMandible().eval(), recipe, {})
    makers: dict[str, Callable[[], Backend]] = {
        "eager": lambda: EagerBackend(model.network, "cpu"),
        "same": lambda: EagerBackend(model.network, "cpu"),
        "nothing": Nothing,
        "broken": Broken,
    }
    ct = make_ct()
    assert (ct.array_hu > 400).sum() >= LOST_VOXELS
    eager, same, nothing, broken = measure(model, makers, [Pipeline(recipe).prepare(ct)])
    assert eager.window_s is not None
    assert same.window_s is not None
    assert same.agrees
    assert nothing.lost == ("Bone_Mandible",)
    assert broken.error is not None
    assert broken.error.startswith("RuntimeError: cannot compute (")
    assert "second" not in broken.error
    assert not broken.agrees
