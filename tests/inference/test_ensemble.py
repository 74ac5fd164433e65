import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.imaging.geometry import Grid
from lib.imaging.volumes import CtVolume
from lib.inference.ensemble import (
    DeepContours,
    DeepOptions,
    active_dropout,
    contour_ensemble,
    plan_passes,
    write_uncertainty_map,
)
from lib.inference.preprocessing import Pipeline
from lib.inference.resampling import restored_map
from lib.inference.single_pass import contour
from lib.models.registry import Model
from lib.networks.build import build_network
from lib.organs.table import ORGANS, is_mirrorable
from lib.recipes.schema import OPENKBP, NetworkConfig
from phantom import head_and_neck_phantom
from tests.phantoms import ORIENTATIONS, SPACING_MM, make_ct, make_oblique_ct, stored_as

pytestmark = pytest.mark.long

RECIPE = replace(
    OPENKBP,
    spacing_mm=SPACING_MM,
    spacing_tolerance=0.0,
    hu_windows=((-1000.0, 1000.0),),
    crop_vox=(12, 12, 8),
)
ONLY_PLAIN = DeepOptions(mirror=False, hu_shifts=())
LEFT, RIGHT = OPENKBP.labels["Parotid_L"], OPENKBP.labels["Parotid_R"]
STEP_HU = 100


class BoneIs(nn.Module):
    """A network that labels voxels above 400 HU as `value`, on either side, and all others as background."""

    def __init__(self, value: int, certainty: float = 20.0) -> None:
        super().__init__()
        self.value, self.certainty = value, certainty

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((image.shape[0], 8, *image.shape[2:]), -60.0)
        is_bone = image[:, 0] > 0.4
        logits[:, self.value] = torch.where(is_bone, self.certainty, -60.0)
        logits[:, 0] = torch.where(is_bone, 0.0, 20.0)
        return logits


class TellsSides(nn.Module):
    """A network that recognizes organs by their HU, and the side of a paired organ by its position."""

    def forward(self, image: Tensor) -> Tensor:
        hu = image[:, 0] * 1000
        middle = (torch.arange(image.shape[2]) >= image.shape[2] / 2)[None, :, None, None]
        value = torch.clamp(torch.round(hu / STEP_HU), 0, 7).long()
        value = torch.where(
            value == LEFT, torch.where(middle, torch.tensor(RIGHT), torch.tensor(LEFT)), value
        )
        return nn.functional.one_hot(value, 8).movedim(-1, 1).float() * 40.0


def model_of(network: nn.Module, version: str = "stub") -> Model:
    return Model(version, network.eval(), RECIPE, {})


def random_model(version: str = "random", *, dropout: float = 0.0, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    recipe = replace(RECIPE, network=NetworkConfig(width=2, dropout=dropout))
    network = build_network(recipe)
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(50)
        network.get_parameter("head.bias")[0] = -5.0
    return Model(version, network.eval(), recipe, {})


def deep(
    ct: CtVolume,
    model: Model,
    options: DeepOptions | None = None,
    earlier: Sequence[Model] = (),
) -> DeepContours:
    return contour_ensemble(ct, plan_passes(model, options or DeepOptions(), earlier=earlier))


def test_passes_that_agree_give_the_plain_contours_and_no_uncertainty() -> None:
    ct = make_ct()
    result = deep(ct, model_of(BoneIs(7)))
    np.testing.assert_array_equal(result.label.array, contour(ct, model_of(BoneIs(7))).label.array)
    assert result.label.grid is ct.grid
    organ = result.organs["Bone_Mandible"]
    assert (organ.volume_cv, organ.pairwise_dice) == (0.0, 1.0)
    assert (organ.samples, organ.found_in) == (4, 4)
    assert organ.mean_entropy == pytest.approx(0.0, abs=1e-4)
    assert result.organs["Brainstem"].found_in == 0
    assert result.organs["Brainstem"].mean_entropy is None


def test_a_network_that_confuses_sides_has_high_uncertainty_with_mirroring() -> None:
    # The plain view is left; the mirrored view is left of the mirrored patient, which is right. The order of
    # the values decides the tie in the mean; the test checks that the two views disagree completely.
    result = deep(make_ct(), model_of(BoneIs(LEFT)), DeepOptions(hu_shifts=()))
    bone = make_ct().array_hu > 400
    for name in ("Parotid_L", "Parotid_R"):
        assert result.organs[name].pairwise_dice == 0.0
        assert result.organs[name].volume_cv == 1.0, "volumes n and 0: mean n/2, deviation n/2"
        assert result.organs[name].found_in == 1
    # Entropy of two equally likely classes of eight.
    np.testing.assert_allclose(result.uncertainty_map[bone], 1 / 3, atol=1e-4)
    np.testing.assert_allclose(result.uncertainty_map[~bone], 0.0, atol=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("order", "flips"), [ORIENTATIONS[0], ORIENTATIONS[21], ORIENTATIONS[46]])
def test_left_and_right_are_never_swapped_on_the_phantom_cohort(
    seed: int, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    ct, label = head_and_neck_phantom(
        seed, grid_shape=(48, 48, 36), spacing_mm=(10.0, 10.0, 6.0), labels=OPENKBP.labels
    )
    # Each organ has its own HU, but both parotids have the same.
    painted = np.where(label.array == RIGHT, LEFT, label.array).astype(np.int16) * STEP_HU
    hu = np.where(label.array > 0, painted, np.minimum(ct.array_hu, 0)).astype(np.int16)
    scan = stored_as(CtVolume("phantom", hu, ct.grid), order, flips)
    wanted = stored_as(CtVolume("phantom", label.array, ct.grid), order, flips).array_hu
    recipe = replace(RECIPE, spacing_mm=(10.0, 10.0, 6.0), crop_vox=(64, 64, 64))
    result = deep(scan, Model("sides", TellsSides(), recipe, {}))
    mirrored_alone = deep(scan, Model("sides", TellsSides(), recipe, {}), DeepOptions(hu_shifts=()))
    for value in (LEFT, RIGHT):
        np.testing.assert_array_equal(result.label.array == value, wanted == value)
        np.testing.assert_array_equal(mirrored_alone.label.array == value, wanted == value)
    for name in ("Parotid_L", "Parotid_R", "Brainstem", "SpinalCord"):
        assert result.organs[name].pairwise_dice == 1.0, name


def test_no_mirrored_view_where_an_organ_lacks_its_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_mirrorable(OPENKBP.labels)
    assert is_mirrorable({"Brainstem": 1})
    assert not is_mirrorable({"Brainstem": 1, "Parotid_L": 2})
    monkeypatch.setattr("lib.inference.ensemble.is_mirrorable", lambda labels: False)
    planned = plan_passes(model_of(BoneIs(7)), DeepOptions())
    assert planned.views == ("plain", "-10 HU", "+10 HU")
    assert "no mirrored view" in planned.notes[0]


def test_brighter_and_darker_views_are_so_many_hu_apart() -> None:
    seen = []

    class Sees(BoneIs):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(float(image.max()))
            return super().forward(image)

    recipe = replace(RECIPE, crop_vox=(64, 64, 64), hu_windows=((-2000.0, 2000.0),))
    deep(make_ct(), Model("sees", Sees(7), recipe, {}), DeepOptions(hu_shifts=(-20.0, 40.0)))
    np.testing.assert_allclose(np.array(seen) * 2000, [1500, 1500, 1480, 1540], rtol=1e-5)


def test_probabilities_of_the_last_k_models_are_averaged() -> None:
    served = model_of(BoneIs(7), "served")
    older = [
        model_of(BoneIs(1), "second"),
        model_of(BoneIs(1), "third"),
        model_of(BoneIs(2), "4th"),
    ]
    result = deep(make_ct(), served, earlier=older)
    assert result.plan.models == ("served", "second", "third")
    bone = make_ct().array_hu > 400
    assert (result.label.array[bone] == 1).all(), "two of three models agree"
    assert result.version == "served"
    assert result.summary()["deep"]["models"] == ["served", "second", "third"]
    assert result.summary()["deep"]["passes"] == 12
    # Four samples of twelve contain the organ: 6 equal pairs, 32 pairs of present and absent.
    assert result.organs["Bone_Mandible"].pairwise_dice == pytest.approx(6 / (6 + 32))
    # The mean probability is 1/3 and 2/3.
    entropy = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3) / np.log(8)
    np.testing.assert_allclose(result.uncertainty_map[bone], entropy, atol=1e-4)


def test_dropout_is_sampled_for_a_single_model_with_dropout() -> None:
    with_dropout = random_model(dropout=0.5)
    planned = plan_passes(with_dropout, DeepOptions(hu_shifts=(), dropout_samples=3))
    assert [p.dropout_seed for p in planned.passes] == [0, 1, 2, 3, 4, 5]
    assert planned.as_dict()["dropout_samples"] == 3
    assert "6 passes over each scan (2 views x 3 draws of dropout)" in str(planned)
    for others in (
        plan_passes(with_dropout, DeepOptions(), earlier=[random_model("older", dropout=0.5)]),
        plan_passes(random_model(), DeepOptions()),
        plan_passes(with_dropout, DeepOptions(dropout_samples=0)),
    ):
        assert {p.dropout_seed for p in others.passes} == {None}
        assert others.as_dict()["dropout_samples"] == 0


def test_dropout_samples_differ_but_the_result_is_reproducible() -> None:
    options = replace(ONLY_PLAIN, dropout_samples=3)
    model = random_model(dropout=0.5)
    first = deep(make_ct(), model, options)
    torch.rand(7)
    second = deep(make_ct(), model, options)
    np.testing.assert_array_equal(first.label.array, second.label.array)
    np.testing.assert_array_equal(first.uncertainty_map, second.uncertainty_map)
    assert first.organs == second.organs
    assert any(o.pairwise_dice not in (None, 1.0) for o in first.organs.values())
    other = deep(make_ct(), model, replace(options, seed=100))
    assert not np.array_equal(first.uncertainty_map, other.uncertainty_map)


def test_only_dropout_layers_are_in_training_mode_and_only_during_the_passes() -> None:
    network = random_model(dropout=0.5).network
    before = torch.random.get_rng_state()
    with active_dropout(network, 5, device="cpu"):
        training = {type(m).__name__ for m in network.modules() if m.training}
        torch.rand(3)
    assert training == {"Dropout3d"}
    assert not any(m.training for m in network.modules())
    assert torch.equal(torch.random.get_rng_state(), before)
    failing = active_dropout(network, 5, device="cpu")
    with pytest.raises(ValueError, match="in the network"), failing:
        raise ValueError("in the network")
    assert not any(m.training for m in network.modules())


@pytest.mark.parametrize(
    "ct",
    [make_ct(), make_oblique_ct(), stored_as(make_ct(), (2, 0, 1), (True, False, True))],
    ids=["upright", "oblique", "flipped"],
)
def test_the_uncertainty_map_is_on_the_scans_grid(ct: CtVolume, tmp_path: Path) -> None:
    result = deep(ct, model_of(BoneIs(LEFT)))
    assert result.uncertainty_map.shape == ct.grid.shape_vox
    assert result.uncertainty_map.dtype == np.float32
    path = tmp_path / "map.nii.gz"
    write_uncertainty_map(path, result)
    by_itk = sitk.ReadImage(str(path))
    assert Grid.of_sitk(by_itk).is_same_as(ct.grid)
    assert by_itk.GetPixelIDValue() == sitk.sitkFloat32
    stored = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    np.testing.assert_allclose(stored, result.uncertainty_map, atol=1 / 512 + 1e-6)
    np.testing.assert_array_equal(stored > 0.25, ct.array_hu > 400)


def test_the_uncertainty_map_is_resampled_like_the_contours_and_zero_outside_the_body() -> None:
    recipe = replace(RECIPE, spacing_mm=(2.0, 3.0, 3.5))
    values = np.full((60, 60, 20), -1000, np.int16)
    values[25:45, 20:40, 2:18] = 40
    ct = CtVolume("small", values, Grid.from_affine((60, 60, 20), make_ct().grid.affine_ras))
    pipeline = Pipeline(recipe)
    prepared = pipeline.prepare(ct)
    assert prepared.hu.shape < prepared.frame.shape_model
    result = restored_map(np.ones(prepared.hu.shape, np.float32), prepared.frame, prepared.box)
    assert result.shape == ct.grid.shape_vox
    assert (result[25:45, 20:40, 2:18] == 1).all()
    assert set(np.unique(result).tolist()) == {0.0, 1.0}
    assert result[0, 0].max() == 0


def test_the_uncertainty_map_is_between_0_and_1_for_an_untrained_network() -> None:
    result = deep(make_ct(), random_model())
    assert 0 <= result.uncertainty_map.min() <= result.uncertainty_map.max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"overlap": 0.95}, "overlap must be from 0 to 0.9"),
        ({"models": 0}, "models must be at least 1"),
        ({"dropout_samples": -1}, "must not be below 0"),
        ({"hu_shifts": (500.0,)}, "within 100 HU"),
        ({"hu_shifts": (float("nan"),)}, "within 100 HU"),
    ],
)
def test_invalid_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DeepOptions(**wrong)  # type: ignore[arg-type]


def test_the_plan_states_its_cost() -> None:
    planned = plan_passes(model_of(BoneIs(7)), DeepOptions(overlap=0.75))
    # Half the step on each axis: eight times the number of windows.
    assert str(planned) == (
        "4 passes over each scan (4 views, one model), each with up to 8.0 times the windows of a plain one: "
        "the network takes up to 32 times as long"
    )


def test_seconds_name_each_stage_and_progress_counts_the_passes() -> None:
    calls: list[tuple[int, int]] = []
    result = contour_ensemble(
        make_ct(),
        plan_passes(model_of(BoneIs(7)), DeepOptions()),
        progress=lambda done, of: calls.append((done, of)),
    )
    assert list(result.seconds) == ["prepare", "network", "restore", "uncertainty"]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_other_requests_run_between_two_passes() -> None:
    turn = threading.Lock()
    free = []
    contour_ensemble(
        make_ct(),
        plan_passes(model_of(BoneIs(7)), DeepOptions()),
        pass_context=turn,
        progress=lambda done, of: free.append(not turn.locked()),
    )
    assert free == [True] * 4


def test_every_organ_of_the_table_has_a_mirror_in_it() -> None:
    assert all(organ.mirror in ORGANS for organ in ORGANS.values())
