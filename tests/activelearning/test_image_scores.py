import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.activelearning import image_scores
from lib.imaging.quantities import FloatArray
from lib.imaging.volumes import CtVolume, LabelVolume
from lib.inference.ensemble import DeepOptions
from lib.inference.preprocessing import Pipeline, Prepared
from lib.models.registry import Model
from lib.networks.build import build_network
from lib.recipes.schema import OPENKBP
from phantom import head_and_neck_phantom
from tests.phantoms import stored_as

pytestmark = pytest.mark.long

SPACING_MM = (4.0, 4.0, 5.0)
SHAPE = (72, 72, 48)
RECIPE = replace(
    OPENKBP,
    spacing_mm=SPACING_MM,
    crop_vox=(24, 24, 16),
    network=replace(OPENKBP.network, width=4),
)


@pytest.fixture(scope="module")
def phantom() -> tuple[CtVolume, LabelVolume]:
    return head_and_neck_phantom(
        3, grid_shape=SHAPE, spacing_mm=SPACING_MM, labels=dict(OPENKBP.labels)
    )


@pytest.fixture(scope="module")
def prepared(phantom: tuple[CtVolume, LabelVolume]) -> Prepared:
    return Pipeline(RECIPE).prepare(phantom[0])


def model(network: nn.Module | None = None) -> Model:
    torch.manual_seed(1)
    return Model("m-1", (network or build_network(RECIPE)).eval(), RECIPE, {})


class Certain(nn.Module):
    """Network that predicts mandible above `above_hu`, else background, with the logit `certainty`."""

    def __init__(self, certainty: float, above_hu: float = 200.0) -> None:
        super().__init__()
        self.certainty = certainty
        low, high = RECIPE.hu_windows[0]
        self.above = 2.0 * (above_hu - low) / (high - low) - 1.0

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.zeros((image.shape[0], RECIPE.classes, *image.shape[2:]))
        is_bone = image[:, 0] > self.above
        logits[:, OPENKBP.labels["Bone_Mandible"]] = torch.where(is_bone, self.certainty, 0.0)
        logits[:, 0] = torch.where(is_bone, 0.0, self.certainty)
        return logits


def test_prediction_scores_are_plain_values_and_other_work_may_run_before_each_window(
    prepared: Prepared,
) -> None:
    calls: list[int] = []
    scores = image_scores.prediction_scores(prepared, model(), between=lambda: calls.append(1))
    assert len(calls) > 3
    stored = json.loads(json.dumps(scores))
    assert 0 < stored["entropy"] <= 1
    assert set(stored["organs"]) == set(OPENKBP.labels)
    # The bottom of a network of width 4 has 64 channels.
    assert len(stored["features"]) == 64
    score = image_scores.to_image_score("a", "m-1", stored)
    assert score.entropy == stored["entropy"]
    assert not score.has_samples


def test_the_entropy_of_an_unsure_model_is_higher(prepared: Prepared) -> None:
    sure = image_scores.prediction_scores(prepared, model(Certain(40.0)))
    unsure = image_scores.prediction_scores(prepared, model(Certain(1.0)))
    assert sure["entropy"] < 1e-6 < 0.5 < unsure["entropy"]
    assert unsure["organs"]["Bone_Mandible"]["entropy"] > 0.5
    assert sure["organs"]["Larynx"] == {"entropy": None, "shape": None}
    bone = prepared.hu[prepared.hu > -350] > 200
    assert sure["foreground"] == pytest.approx(bone.mean(), rel=0.01)


def test_equal_samples_agree_and_different_ones_do_not(prepared: Prepared) -> None:
    alike = image_scores.sample_scores(
        prepared, model(Certain(40.0)), options=DeepOptions(overlap=0.5)
    )
    assert alike["organs"]["Bone_Mandible"]["pairwise_dice"] > 0.9
    assert alike["organs"]["Larynx"] == {"volume_cv": None, "pairwise_dice": None}
    # Muscle has about 45 HU, so a shift by 10 HU changes the predicted organ of many voxels.
    unstable = model(Certain(40.0, above_hu=45.0))
    apart = image_scores.sample_scores(prepared, unstable, options=DeepOptions(overlap=0.5))
    organ = "Bone_Mandible"
    assert apart["organs"][organ]["pairwise_dice"] < alike["organs"][organ]["pairwise_dice"] - 0.02
    prediction = image_scores.prediction_scores(prepared, unstable)
    score = image_scores.with_samples(image_scores.to_image_score("a", "m-1", prediction), apart)
    assert score.has_samples
    assert {n: o.pairwise_dice for n, o in score.organs.items()} == {
        n: o["pairwise_dice"] for n, o in apart["organs"].items()
    }


def test_appearance_is_finite_and_similar_for_one_patient_on_two_grids() -> None:
    def features(seed: int, grid_shape: tuple[int, int, int]) -> FloatArray:
        spacing = tuple(n * s / m for n, s, m in zip(SHAPE, SPACING_MM, grid_shape, strict=True))
        ct, _ = head_and_neck_phantom(seed, grid_shape=grid_shape, spacing_mm=spacing, labels={})  # type: ignore[arg-type]
        return image_scores.to_features(
            image_scores.appearance_features(Pipeline(RECIPE).prepare(ct))
        )

    coarse, finer, other = features(3, SHAPE), features(3, (96, 96, 60)), features(8, SHAPE)
    assert np.isfinite(coarse).all()
    assert np.linalg.norm(coarse - finer) < np.linalg.norm(coarse - other)


@pytest.mark.parametrize(
    ("order", "flips"),
    [((0, 1, 2), (False, False, False)), ((2, 0, 1), (True, False, True)), ((1, 2, 0), (True, True, True))],
)  # fmt: skip
def test_the_shape_of_a_label_does_not_depend_on_the_axis_order_of_the_file(
    phantom: tuple[CtVolume, LabelVolume],
    order: tuple[int, int, int],
    flips: tuple[bool, bool, bool],
) -> None:
    ct, label = phantom
    turned = stored_as(ct, order, flips)
    array = np.flip(label.array.transpose(order), tuple(a for a, f in enumerate(flips) if f))
    stored = LabelVolume(np.ascontiguousarray(array), turned.grid, label.labels)
    shapes = image_scores.to_organ_shapes(json.loads(json.dumps(image_scores.label_shapes(stored))))
    assert set(shapes) == set(label.volumes_ml())
    for name, volume in label.volumes_ml().items():
        assert shapes[name].volume_ml == pytest.approx(volume, rel=1e-3)
    # +x runs to the patient's right, +z to the head.
    assert shapes["Parotid_R"].centroid_mm[0] > shapes["Brainstem"].centroid_mm[0]
    assert shapes["Brainstem"].centroid_mm[0] > shapes["Parotid_L"].centroid_mm[0]
    assert shapes["Brainstem"].centroid_mm[2] > shapes["Larynx"].centroid_mm[2]


def test_small_pieces_are_not_counted() -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    label[12:16, 12:16, 12:16] = 1
    label[19, 19, 19] = 1
    shape = image_scores.organ_shapes(label, (1.0, 1.0, 2.0), {"Brainstem": 1})["Brainstem"]
    assert shape.pieces == 2
    assert shape.volume_ml == pytest.approx(129 * 2 / 1000)
