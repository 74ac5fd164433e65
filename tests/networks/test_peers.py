import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from monai.networks.nets.vnet import VNet as MonaiVNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lib.backends.eager import EagerBackend
from lib.errors import ConfigError
from lib.inference.preprocessing import Pipeline, Prepared
from lib.inference.single_pass import probabilities
from lib.models.registry import Model, load_model, save_model
from lib.networks.build import (
    NETWORKS,
    build_network,
    check_network,
    parameter_count,
    size_divisor,
    with_network,
)
from lib.networks.losses import FocalDiceLoss
from lib.networks.peers import Padded, UNetPlusPlus, VNet, plan_unet
from lib.recipes.schema import NETWORK_NAMES, OPENKBP, PDDCA, NetworkConfig, NetworkName, Recipe
from lib.training.cases import Case
from lib.training.run import RunCallbacks, RunOptions, train
from lib.training.state import moving_average
from tests.phantoms import make_ct
from tests.tiny import TINY

pytestmark = pytest.mark.long

# The smallest width that each network accepts.
NARROW = dict.fromkeys(NETWORK_NAMES, 2) | {"swinunetr": 12}
DIVISORS = {
    "organnet25d": (4, 4, 2),
    "dynunet": (4, 4, 4),  # 16 -> 8 -> 4
    "segresnet": (8, 8, 8),
    "unet": (16, 16, 16),
    "vnet": (16, 16, 16),
    "basicunetplusplus": (16, 16, 16),
    "attentionunet": (16, 16, 16),
    "swinunetr": (32, 32, 32),
    "anatomynet": (2, 2, 2),
}
# With 8 classes and two HU windows, at the usual width.
PARAMETERS = {
    "organnet25d": 8_061_256,
    "dynunet": 5_601_992,
    "segresnet": 18_797_064,
    "unet": 4_814_161,
    "vnet": 45_623_976,
    "basicunetplusplus": 6_980_840,
    "attentionunet": 5_909_664,
    "swinunetr": 62_188_730,
    "anatomynet": 735_171,
}

every_network = pytest.mark.parametrize("name", NETWORK_NAMES)


def tiny(name: NetworkName, *, dropout: float = 0.0) -> Recipe:
    network = NetworkConfig(name=name, width=NARROW[name], dropout=dropout)
    return replace(OPENKBP, name="tiny", crop_vox=(16, 16, 16), network=network)


def made(recipe: Recipe, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(recipe).to(memory_format=torch.channels_last_3d)


def prepared(*shape: int) -> Prepared:
    """Return a prepared scan of the given shape: `probabilities` reads only its `hu`."""
    result = Pipeline(OPENKBP).prepare(make_ct())
    torch.manual_seed(1)
    return replace(result, hu=(200 * torch.randn(*shape)).numpy())


def probabilities_of(scan: Prepared, network: nn.Module, recipe: Recipe) -> Tensor:
    model = Model("peer", network.eval(), recipe, {})
    return probabilities(
        scan,
        model,
        pipeline=Pipeline(recipe),
        backend=EagerBackend.usual(model.network, "cpu"),
        overlap=0.25,
    )


def test_the_names_of_recipes_are_those_of_the_registry() -> None:
    assert tuple(NETWORKS) == NETWORK_NAMES == get_args(NetworkName)


@every_network
def test_divisor_is_what_the_poolings_divide_by(name: NetworkName) -> None:
    assert size_divisor(tiny(name)) == DIVISORS[name]


@every_network
def test_the_output_has_the_size_of_the_input(name: NetworkName) -> None:
    recipe = tiny(name)
    network = made(recipe).eval()
    for size in [(16, 16, 16), (5, 3, 1), (17, 9, 19)]:
        with torch.inference_mode():
            logits = network(torch.randn(1, 2, *size))
        assert logits.shape == (1, 8, *size)
        assert bool(logits.isfinite().all())


@every_network
def test_one_step_in_bfloat16_lowers_the_loss_and_the_average_follows(name: NetworkName) -> None:
    recipe = tiny(name)
    network = made(recipe).train()
    average = AveragedModel(network, multi_avg_fn=moving_average(0.9), use_buffers=True)
    image = torch.randn(2, 2, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    label = torch.zeros(2, 16, 16, 16, dtype=torch.long)
    label[:, 4:12, 4:12, 4:12] = 3
    loss_function = FocalDiceLoss(recipe)
    known = torch.ones(2, recipe.classes, dtype=torch.bool)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(image)
        return torch.as_tensor(loss_function(logits, label, known))

    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    before = loss()
    torch.autograd.backward(before)
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None for g in gradients), "nothing is stored untrained"
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)
    optimizer.step()
    assert float(loss().detach()) < float(before.detach())
    average.update_parameters(network)
    for key, value in average.module.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[key], msg=key)


@every_network
def test_windows_slide_over_an_odd_volume_smaller_than_the_crop(name: NetworkName) -> None:
    recipe = tiny(name)
    result = probabilities_of(prepared(13, 21, 7), made(recipe), recipe)
    assert result.shape == (8, 13, 21, 7)
    torch.testing.assert_close(result.sum(dim=0), torch.ones(13, 21, 7))


@every_network
def test_a_stored_model_gives_the_same_output(name: NetworkName, tmp_path: Path) -> None:
    recipe = tiny(name, dropout=0.2)
    network = made(recipe, seed=5)
    version = save_model(tmp_path, network.state_dict(), recipe, {})
    loaded = load_model(tmp_path / f"{version}.safetensors")
    assert version.startswith(f"{name}-tiny-")
    assert loaded.recipe == recipe
    scan = prepared(9, 16, 11)
    assert torch.equal(
        probabilities_of(scan, loaded.network, recipe), probabilities_of(scan, network, recipe)
    )


@every_network
def test_dropout_is_random_in_training_and_off_in_evaluation(name: NetworkName) -> None:
    network = made(tiny(name, dropout=0.5))
    image = torch.randn(1, 2, 16, 16, 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 0.0
    with torch.inference_mode():
        assert not torch.equal(network.train()(image), network(image))
        torch.testing.assert_close(network.eval()(image), network(image))


@every_network
def test_parameter_count_at_the_usual_width(name: NetworkName) -> None:
    state = torch.get_rng_state()
    recipe = with_network(OPENKBP, name, width=16 if name == "organnet25d" else None)
    assert parameter_count(recipe) == PARAMETERS[name]
    assert torch.equal(torch.get_rng_state(), state)


HEAVY = {"swinunetr", "basicunetplusplus", "vnet"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.campaign if n in HEAVY else ()) for n in NETWORK_NAMES],
)
def test_the_openkbp_crop_fits_at_the_usual_width(name: str) -> None:
    recipe = with_network(OPENKBP, name)
    network = made(recipe).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 2, 48, 48, 48)).shape == (1, 8, 48, 48, 48)


@pytest.mark.parametrize("name", ["swinunetr", "dynunet"])
def test_a_peer_is_trained_by_the_common_training_loop(
    cases: list[Case], tmp_path: Path, name: str
) -> None:
    schedule = replace(TINY.schedule, epochs=1, steps_per_epoch=1, batch_size=1)
    recipe = with_network(replace(TINY, crop_vox=(16, 16, 16), schedule=schedule), name, width=12)
    trained = train(
        recipe,
        cases[:1],
        [],
        run_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        options=RunOptions(),
        callbacks=RunCallbacks(),
    )
    version = save_model(tmp_path, trained.weights, recipe, trained.card)
    assert load_model(tmp_path / f"{version}.safetensors").recipe.network.name == name


def test_an_average_keeps_whole_numbers_whole() -> None:
    # 0.9 x 7 + 0.1 x 7 is a little below 7 in float32, and PyTorch's own average cuts it to 6.
    network = nn.Module()
    network.register_buffer("table", torch.arange(2000))
    average = AveragedModel(network, multi_avg_fn=moving_average(0.9), use_buffers=True)
    for _ in range(20):
        average.update_parameters(network)
    assert torch.equal(cast(Tensor, average.module.table), torch.arange(2000))


def test_windows_are_the_smallest_that_the_network_does_not_pad() -> None:
    seen: list[tuple[int, ...]] = []

    class Recorder(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(tuple(image.shape[2:]))
            return torch.zeros(len(image), 8, *image.shape[2:])

    scan = prepared(13, 40, 70)
    for name in ("anatomynet", "dynunet", "swinunetr"):
        probabilities_of(scan, Recorder(), with_network(OPENKBP, name))
    assert list(dict.fromkeys(seen)) == [(14, 40, 48), (16, 40, 48), (32, 48, 48)]


class Inside(nn.Module):
    """A network that returns its input, and records it."""

    given = torch.empty(0)

    def forward(self, image: Tensor) -> Tensor:
        self.given = image
        return image


def test_padding_is_at_the_far_end_with_the_last_voxel() -> None:
    inside = Inside()
    image = torch.arange(6.0).reshape(1, 1, 6, 1, 1)
    assert torch.equal(Padded(inside, (4, 1, 1))(image), image)
    assert inside.given.flatten().tolist() == [0, 1, 2, 3, 4, 5, 5, 5]


def test_the_deepest_level_keeps_more_than_one_voxel() -> None:
    inside = Inside()
    Padded(inside, (4, 4, 2))(torch.zeros(1, 1, 3, 4, 2))
    assert inside.given.shape[2:] == (8, 4, 2)
    Padded(inside, (4, 4, 2))(torch.zeros(1, 1, 3, 4, 3))
    assert inside.given.shape[2:] == (4, 4, 4)


def test_dynunet_has_the_architecture_of_nnu_net() -> None:
    network = build_network(replace(PDDCA, network=NetworkConfig(name="dynunet", width=2)))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert [m.kernel_size for m in convolutions if m.in_channels == 1] == [(3, 3, 1)]
    assert {type(m) for m in network.modules() if "Norm" in type(m).__name__} == {nn.InstanceNorm3d}
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.01}
    heads = [m for m in convolutions if m.out_channels == PDDCA.classes]
    assert len(heads) == 1, "no deep supervision"


def test_vnet_of_width_16_equals_monais() -> None:
    torch.manual_seed(0)
    expected = MonaiVNet(3, 2, 8, dropout_prob_down=0.0, dropout_prob_up=(0.0, 0.0)).eval()
    actual = VNet(2, 8, width=16, dropout=0.0).eval()
    actual.load_state_dict(expected.state_dict())
    image = torch.randn(1, 2, 32, 16, 16)
    with torch.inference_mode():
        assert torch.equal(actual(image), expected(image))


def test_unet_plus_plus_answers_with_its_deepest_node() -> None:
    actual = UNetPlusPlus(2, 8, width=2, dropout=0.0).eval()
    expected = BasicUNetPlusPlus(
        3, 2, 8, features=(2, 2, 4, 8, 16, 2), deep_supervision=True
    ).eval()
    expected.load_state_dict(actual.nodes.state_dict(), strict=False)
    image = torch.randn(1, 2, 32, 16, 16)
    with torch.inference_mode():
        assert torch.equal(actual(image), expected(image)[-1])


def test_a_copy_shares_nothing_with_its_original() -> None:
    for name in NETWORK_NAMES:
        network = made(tiny(name))
        tensors = list(network.state_dict().values())
        assert len({t.data_ptr() for t in tensors}) == len(tensors), "each is stored once"
        copied = copy.deepcopy(network).state_dict().values()
        assert not {t.data_ptr() for t in tensors} & {t.data_ptr() for t in copied}


def test_with_network_changes_only_the_network_and_the_name() -> None:
    recipe = with_network(OPENKBP, "dynunet")
    assert recipe.name == "openkbp-dynunet"
    assert recipe.network == NetworkConfig(name="dynunet", width=32)
    assert replace(recipe, name=OPENKBP.name, network=OPENKBP.network) == OPENKBP
    assert with_network(recipe, "unet").name == "openkbp-unet"
    assert with_network(OPENKBP, "unet", width=4).network.width == 4


def test_with_its_own_network_a_recipe_is_unchanged() -> None:
    assert with_network(OPENKBP, "organnet25d") is OPENKBP
    wider = with_network(OPENKBP, "organnet25d", width=12)
    assert (wider.network.width, wider.network.dilations) == (12, OPENKBP.network.dilations)


def test_usual_width_is_raised_to_what_the_windows_allow() -> None:
    three = replace(OPENKBP, hu_windows=(*OPENKBP.hu_windows, (-1000.0, 1000.0)))
    assert with_network(three, "vnet").network.width == 18


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nnunet", {}, r"'openkbp': unknown network 'nnunet'; .* organnet25d, dynunet, seg"),
        ("swinunetr", {"width": 8}, r"'swinunetr' needs a width that is a multiple of 12, not 8"),
        ("vnet", {"width": 3}, r"'vnet' needs a width that is a multiple of 2, not 3"),
        ("unet", {"width": 0}, r"width and se_reduction must be at least 1"),
    ],
)
def test_an_unsuitable_network_configuration_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_network(OPENKBP, name, **changes)


def test_a_crop_too_small_for_dynunet_is_refused_before_anything_is_built() -> None:
    with pytest.raises(
        ConfigError, match=r"crop_vox of \(8, 8, 8\).*use at least 16 voxels a side"
    ):
        with_network(replace(OPENKBP, crop_vox=(8, 8, 8)), "dynunet")


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    network = NetworkConfig(name=cast(NetworkName, "nnunet"))
    with pytest.raises(ConfigError, match=r"known networks: organnet25d, dynunet, .*anatomynet"):
        check_network(replace(OPENKBP, network=network))


def test_openkbp_pools_every_axis_until_six_voxels_are_left() -> None:
    # 3.906 mm is 1.6 times 2.5 mm: all axes together. 48 -> 24 -> 12 -> 6, and 6 is less than twice 4.
    plan = plan_unet(OPENKBP.crop_vox, OPENKBP.spacing_mm)
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.kernels == ((3, 3, 3),) * 4
    assert plan.divisor == (8, 8, 8)
    assert plan.channels(32) == [32, 64, 128, 256]


def test_pddca_leaves_z_alone_until_the_voxels_are_less_than_twice_as_deep_as_wide() -> None:
    # 0.8, 0.8, 2.5 mm: z is 3.1 times x, so in the plane first; at 1.6 mm z is 1.6 times x, and all pool:
    # (256, 256, 48) -> (128, 128, 48) -> (64, 64, 24) -> (32, 32, 12) -> (16, 16, 6). Then z has 6 voxels,
    # less than twice 4: x and y alone, -> (8, 8, 6) -> (4, 4, 6).
    plan = plan_unet(PDDCA.crop_vox, PDDCA.spacing_mm)
    in_plane, every = (2, 2, 1), (2, 2, 2)
    assert plan.strides == ((1, 1, 1), in_plane, every, every, every, in_plane, in_plane)
    assert plan.kernels == ((3, 3, 1), *((3, 3, 3),) * 6)
    assert plan.divisor == (64, 64, 8)
    assert plan.channels(32) == [32, 64, 128, 256, 320, 320, 320]


def test_an_odd_size_is_halved_upwards() -> None:
    # 15 -> 8 -> 4, as for a padded volume.
    assert plan_unet((15, 15, 15), (1.0, 1.0, 1.0)).divisor == (4, 4, 4)


@pytest.mark.parametrize(("size_x", "divisor_x"), [(11, 1), (12, 2)])
def test_one_axis_alone_is_pooled_only_while_it_keeps_six_voxels(
    size_x: int, divisor_x: int
) -> None:
    assert plan_unet((size_x, 7, 7), (1.0, 1.0, 1.0)).divisor == (divisor_x, 1, 1)


def test_voxels_of_exactly_twice_the_finest_are_not_pooled() -> None:
    plan = plan_unet((64, 64, 64), (1.0, 1.0, 2.0))
    assert plan.strides[1] == (2, 2, 1)
    assert plan.kernels[0] == (3, 3, 1)


def test_the_deepest_level_sees_every_axis() -> None:
    plan = plan_unet((16, 16, 8), (1.0, 1.0, 20.0))
    assert plan.kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_a_width_above_the_largest_channels_is_kept() -> None:
    assert plan_unet((16, 16, 16), (1.0, 1.0, 1.0)).channels(400) == [400, 400, 400]
