"""Networks by name (OrganNet2.5D and its peers), and building the network of a recipe."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.imaging.quantities import ShapeVox
from lib.networks import anatomynet, organnet25d, peers
from lib.networks.convolution import with_trainable_convolutions
from lib.recipes.schema import NetworkConfig, NetworkName, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """Properties of a network, known before it is built.

    Attributes:
        build: Builds the network, with random weights.
        divisor: Number that the sizes x, y, z must be divisible by; other sizes are padded.
        usual_width: Channels of the first level in the original work, or else in MONAI.
        width_step: Number that `network.width` must be a multiple of.
        pads_itself: Whether it accepts any size without `Padded`.
        citation: Publication, and origin of the code.
    """

    build: Callable[[Recipe], nn.Module]
    divisor: Callable[[Recipe], ShapeVox]
    usual_width: int
    width_step: Callable[[Recipe], int] = lambda _: 1
    pads_itself: bool = False
    citation: str


def _organnet25d(recipe: Recipe) -> nn.Module:
    config = recipe.network
    return organnet25d.OrganNet25D(
        recipe.in_channels,
        recipe.classes,
        width=config.width,
        dilations=config.dilations,
        se_reduction=config.se_reduction,
        dropout=config.dropout,
    )


NETWORKS: Mapping[NetworkName, NetworkSpec] = {
    "organnet25d": NetworkSpec(
        build=_organnet25d,
        divisor=lambda _: organnet25d.DIVISORS,
        usual_width=16,
        pads_itself=True,
        citation="Chen et al., MICCAI 2021, arXiv 2109.12634; our code",
    ),
    "dynunet": NetworkSpec(
        build=peers.dynunet,
        divisor=lambda recipe: peers.dynunet_plan(recipe).divisor,
        usual_width=32,
        citation="Isensee et al., Nature Methods 18, 2021 (nnU-Net's plan); MONAI DynUNet",
    ),
    "segresnet": NetworkSpec(
        build=peers.segresnet,
        divisor=lambda _: (8, 8, 8),
        usual_width=32,
        citation="Myronenko, BrainLes 2018, arXiv 1810.11654; MONAI SegResNet",
    ),
    "unet": NetworkSpec(
        build=peers.unet,
        divisor=lambda _: (16, 16, 16),
        usual_width=16,
        citation="Kerfoot et al., STACOM 2018 (residual U-Net); MONAI UNet",
    ),
    "vnet": NetworkSpec(
        build=peers.vnet,
        divisor=lambda _: (16, 16, 16),
        usual_width=16,
        # V-Net adds its repeated input to the first level.
        width_step=lambda recipe: len(recipe.hu_windows),
        citation="Milletari et al., 3DV 2016, arXiv 1606.04797; MONAI's VNet blocks",
    ),
    "basicunetplusplus": NetworkSpec(
        build=peers.basicunetplusplus,
        divisor=lambda _: (16, 16, 16),
        usual_width=32,
        citation="Zhou et al., DLMIA 2018, arXiv 1807.10165; MONAI BasicUNetPlusPlus",
    ),
    "attentionunet": NetworkSpec(
        build=peers.attentionunet,
        divisor=lambda _: (16, 16, 16),
        usual_width=16,
        # The attention gates of the first level have half its channels.
        width_step=lambda _: 2,
        citation="Oktay et al., MIDL 2018, arXiv 1804.03999; MONAI AttentionUnet",
    ),
    "swinunetr": NetworkSpec(
        build=peers.swinunetr,
        divisor=lambda _: (32, 32, 32),
        usual_width=48,
        # 3, 6, 12 and 24 attention heads share the channels of the four stages.
        width_step=lambda _: 12,
        citation="Hatamizadeh et al., BrainLes 2021, arXiv 2201.01266; MONAI SwinUNETR",
    ),
    "anatomynet": NetworkSpec(
        build=peers.anatomynet,
        divisor=lambda _: anatomynet.DIVISOR,
        usual_width=28,
        width_step=lambda _: 2,
        citation="Zhu et al., Medical Physics 46(2), 2019, arXiv 1808.05238; our code",
    ),
}
"""`NetworkConfig.name` -> properties; the keys are those of `lib.recipes.schema.NETWORK_NAMES`."""


def build_network(recipe: Recipe) -> nn.Module:
    """Return the recipe's network with random weights.

    It maps images `(B, in_channels, X, Y, Z)` of any size to logits `(B, classes, X, Y, Z)`.

    Raises:
        ConfigError: If the recipe names an unknown network, or its width or crop does not suit the network.
    """
    spec = check_network(recipe)
    network = with_trainable_convolutions(spec.build(recipe))
    return network if spec.pads_itself else peers.Padded(network, spec.divisor(recipe))


def load_initial(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights of the same network, or of one with fewer input channels: the new ones have no effect yet.

    Raises:
        RuntimeError: If the weights do not fit otherwise.
    """
    fitting = dict(weights)
    for name, own in network.state_dict().items():
        given = fitting.get(name)
        if given is None or given.dim() < 2 or given.shape[1] >= own.shape[1]:
            continue
        if (given.shape[0], *given.shape[2:]) == (own.shape[0], *own.shape[2:]):
            fitting[name] = torch.zeros_like(own)
            fitting[name][:, : given.shape[1]] = given
    network.load_state_dict(fitting)


def check_network(recipe: Recipe) -> NetworkSpec:
    """Return the properties of the recipe's network without building it.

    Raises:
        ConfigError: As `build_network`.
    """
    name, width = recipe.network.name, recipe.network.width
    spec = _spec(recipe, name)
    step = spec.width_step(recipe)
    if width % step:
        raise ConfigError(
            f"recipe {recipe.name!r}: network {name!r} needs a width that is a multiple of {step}, "
            f"not {width}; usual is {spec.usual_width}"
        )
    spec.divisor(recipe)
    return spec


def size_divisor(recipe: Recipe) -> ShapeVox:
    """Return the number that x, y and z of a window must be divisible by to avoid padding.

    Raises:
        ConfigError: As `build_network`.
    """
    return check_network(recipe).divisor(recipe)


def with_network(recipe: Recipe, name: str, *, width: int | None = None) -> Recipe:
    """Return `recipe` with the network `name`; crops, loss and schedule stay the same.

    The new recipe is called `<recipe>-<name>`. If it has that network already and `width` is None, the recipe
    is returned unchanged.

    Args:
        recipe: The recipe.
        name: A key of `NETWORKS`.
        width: Channels of the first level; None for the network's usual width, rounded up to a
            multiple of its `width_step`.

    Raises:
        ConfigError: If `name` is unknown, or the recipe's crop or `width` does not suit the network.
    """
    spec = _spec(recipe, name)
    if name == recipe.network.name:
        if width is None:
            return recipe
        network = recipe.network
    else:
        network = NetworkConfig(name=cast(NetworkName, name), dropout=recipe.network.dropout)
    if width is None:
        step = spec.width_step(recipe)
        width = -(-spec.usual_width // step) * step
    network = dataclasses.replace(network, width=width)
    base = recipe.name.removesuffix(f"-{recipe.network.name}")
    changed = dataclasses.replace(recipe, name=f"{base}-{name}", network=network)
    check_network(changed)
    return changed


def parameter_count(recipe: Recipe) -> int:
    """Return the number of parameters of the recipe's network; PyTorch's random state is preserved."""
    with torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in build_network(recipe).parameters())


def _spec(recipe: Recipe, name: str) -> NetworkSpec:
    if name not in NETWORKS:
        raise ConfigError(
            f"recipe {recipe.name!r}: unknown network {name!r}; "
            f"known networks: {', '.join(NETWORKS)}"
        )
    return NETWORKS[cast(NetworkName, name)]
