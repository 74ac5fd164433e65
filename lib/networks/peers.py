"""Peers of OrganNet2.5D: MONAI's networks, each built from a recipe, and nnU-Net's rule for a U-Net's depth.

Every builder takes its input and output channels from the recipe, and the channels of its first level from
`network.width`. Each docstring says which layers `network.dropout` affects; ADR 0012 gives the reasons.

The rule is that of Isensee et al., Nature Methods 18 (2021), "nnU-Net: a self-configuring method for deep
learning-based biomedical image segmentation", rules "Architecture template" and "Patch size, batch size and
network topology" of the methods; details that the paper leaves open follow the authors' published planner.

MONAI is imported by the builders that need it: the import takes ten seconds, and OrganNet2.5D does not need it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.errors import ConfigError
from lib.imaging.quantities import ShapeVox, SpacingMm
from lib.networks.anatomynet import AnatomyNet
from lib.recipes.schema import Recipe

SMALLEST_MAP_VOX = 4
"""Smallest size of an axis after pooling, in voxels."""
NEAR_RATIO = 2.0
"""Axes are pooled and convolved together while their voxel sizes differ by less than this factor."""
LARGEST_CHANNELS = 320
"""Largest number of channels; channels double at each level up to it (three dimensions)."""


@dataclass(frozen=True, slots=True)
class UNetPlan:
    """A U-Net's levels, from the input's own resolution down.

    Attributes:
        kernels: Kernel of each level's convolutions.
        strides: Stride into each level; the first is `(1, 1, 1)`.
    """

    kernels: tuple[ShapeVox, ...]
    strides: tuple[ShapeVox, ...]

    @property
    def divisor(self) -> ShapeVox:
        """Return the number that each size must be divisible by: the product of the strides on each axis."""
        x, y, z = (math.prod(on_axis) for on_axis in zip(*self.strides, strict=True))
        return x, y, z

    def channels(self, width: int) -> list[int]:
        """Return the channels of each level, `width` at the first."""
        largest = max(width, LARGEST_CHANNELS)
        return [min(width * 2**level, largest) for level in range(len(self.strides))]


def plan_unet(crop_vox: ShapeVox, spacing_mm: SpacingMm) -> UNetPlan:
    """Return the levels of a U-Net for crops of `crop_vox` voxels of `spacing_mm`.

    A level pools those axes that keep `SMALLEST_MAP_VOX` voxels and whose voxel size is less than twice the
    finest of these axes. A single remaining axis is pooled only while it keeps 1.5 times that many voxels.
    An axis has a kernel of 3 from the first level at which its voxel size is less than twice the finest.
    """
    size, spacing = list(crop_vox), list(spacing_mm)
    kernel = [1, 1, 1]
    kernels: list[ShapeVox] = []
    strides: list[ShapeVox] = [(1, 1, 1)]
    while pooled := _pooled_axes(size, spacing):
        near = [step < NEAR_RATIO * min(spacing) for step in spacing]
        kernel = [3 if is_near else old for is_near, old in zip(near, kernel, strict=True)]
        kernels.append((kernel[0], kernel[1], kernel[2]))
        stride = [2 if axis in pooled else 1 for axis in range(3)]
        strides.append((stride[0], stride[1], stride[2]))
        size = [-(-n // factor) for n, factor in zip(size, stride, strict=True)]
        spacing = [step * factor for step, factor in zip(spacing, stride, strict=True)]
    # The deepest level convolves all three axes, however coarse one of them still is.
    return UNetPlan((*kernels, (3, 3, 3)), tuple(strides))


def _pooled_axes(size: list[int], spacing: list[float]) -> list[int]:
    large = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_MAP_VOX]
    if not large:
        return []
    finest = min(spacing[axis] for axis in large)
    pooled = [axis for axis in large if spacing[axis] < NEAR_RATIO * finest]
    if len(pooled) == 1 and size[pooled[0]] < 3 * SMALLEST_MAP_VOX:
        return []
    return pooled


FIVE_LEVELS = (1, 2, 4, 8, 16)
"""Channels of five levels that double, in multiples of the width."""


class Padded(nn.Module):
    """A network for images of any size: padded at the far end with the last voxel, and cropped back.

    Padding also keeps more than one voxel on the deepest level, since normalisation over one is undefined.
    """

    def __init__(self, network: nn.Module, divisor: ShapeVox) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, X, Y, Z)` for an image `(B, C, X, Y, Z)` of any size."""
        size_x, size_y, size_z = x.shape[2], x.shape[3], x.shape[4]
        divisor_x, divisor_y, divisor_z = self.divisor
        pad_x, pad_y, pad_z = -size_x % divisor_x, -size_y % divisor_y, -size_z % divisor_z
        if (size_x + pad_x, size_y + pad_y, size_z + pad_z) == self.divisor:
            pad_x += divisor_x
        if pad_x or pad_y or pad_z:
            x = functional.pad(x, (0, pad_z, 0, pad_y, 0, pad_x), mode="replicate")
        logits: Tensor = self.network(x)
        return logits[:, :, :size_x, :size_y, :size_z]


def dynunet_plan(recipe: Recipe) -> UNetPlan:
    """Return the levels of `dynunet` for the recipe's crop and spacing.

    Raises:
        ConfigError: If the crop is too small for two poolings, which MONAI's DynUNet needs.
    """
    plan = plan_unet(recipe.crop_vox, recipe.spacing_mm)
    if len(plan.strides) < 3:
        raise ConfigError(
            f"recipe {recipe.name!r}: network 'dynunet' needs two poolings, for which a crop_vox of "
            f"{recipe.crop_vox} is too small: use at least 16 voxels a side"
        )
    return plan


def dynunet(recipe: Recipe) -> nn.Module:
    """Return MONAI's DynUNet with nnU-Net's plan: instance norm, leaky ReLU, one head, no deep supervision.

    Dropout: voxels, after each convolution of the encoder (nnU-Net has none).
    """
    from monai.networks.nets.dynunet import DynUNet

    levels = dynunet_plan(recipe)
    network = DynUNet(
        3,
        len(recipe.hu_windows),
        recipe.classes,
        kernel_size=levels.kernels,
        strides=levels.strides,
        upsample_kernel_size=levels.strides[1:],
        filters=levels.channels(recipe.network.width),
        dropout=recipe.network.dropout or None,
    )
    # MONAI stores each level twice: under these names and in `skip_layers`, which `forward` runs.
    # safetensors does not accept one tensor under two names.
    del network.input_block, network.downsamples, network.bottleneck, network.upsamples
    return network


def segresnet(recipe: Recipe) -> nn.Module:
    """Return MONAI's SegResNet with the blocks of Myronenko (2018): 1, 2, 2, 4 down and 1, 1, 1 up.

    Group norm has 8 groups, or the largest number that divides both 8 and the width. Dropout: channels, after
    the first convolution, as in the paper (there 0.2).
    """
    from monai.networks.nets.segresnet import SegResNet

    width = recipe.network.width
    return SegResNet(
        3,
        init_filters=width,
        in_channels=len(recipe.hu_windows),
        out_channels=recipe.classes,
        dropout_prob=recipe.network.dropout or None,
        norm=("GROUP", {"num_groups": math.gcd(8, width)}),
        blocks_down=(1, 2, 2, 4),
        blocks_up=(1, 1, 1),
    )


def unet(recipe: Recipe) -> nn.Module:
    """Return MONAI's UNet of Kerfoot et al. (2018): five levels, two residual units each, instance norm, PReLU.

    Dropout: voxels, after each convolution but the last.
    """
    from monai.networks.nets.unet import UNet

    return UNet(
        3,
        len(recipe.hu_windows),
        recipe.classes,
        channels=_five_levels(recipe),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        dropout=recipe.network.dropout,
    )


class VNet(nn.Module):
    """V-Net (Milletari et al. 2016) from MONAI's blocks; MONAI's own `VNet` has a fixed width of 16."""

    def __init__(self, in_channels: int, out_channels: int, *, width: int, dropout: float) -> None:
        from monai.networks.nets.vnet import (
            DownTransition,
            InputTransition,
            OutputTransition,
            UpTransition,
        )

        super().__init__()
        act = ("elu", {"inplace": True})
        drops = (dropout, dropout)
        w1, w2, w4, w8, w16 = (width * level for level in FIVE_LEVELS)
        self.in_tr = InputTransition(3, in_channels, w1, act)
        self.down_tr32 = DownTransition(3, w1, 1, act)
        self.down_tr64 = DownTransition(3, w2, 2, act)
        self.down_tr128 = DownTransition(3, w4, 3, act, dropout_prob=dropout)
        self.down_tr256 = DownTransition(3, w8, 2, act, dropout_prob=dropout)
        self.up_tr256 = UpTransition(3, w16, w16, 2, act, dropout_prob=drops)
        self.up_tr128 = UpTransition(3, w16, w8, 2, act, dropout_prob=drops)
        self.up_tr64 = UpTransition(3, w8, w4, 1, act, dropout_prob=(None, dropout))
        self.up_tr32 = UpTransition(3, w4, w2, 1, act, dropout_prob=(None, dropout))
        self.out_tr = OutputTransition(3, w2, out_channels, act)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, X, Y, Z)` for sizes that divide by 16."""
        level_1 = self.in_tr(x)
        level_2 = self.down_tr32(level_1)
        level_3 = self.down_tr64(level_2)
        level_4 = self.down_tr128(level_3)
        up = self.up_tr256(self.down_tr256(level_4), level_4)
        up = self.up_tr128(up, level_3)
        up = self.up_tr64(up, level_2)
        logits: Tensor = self.out_tr(self.up_tr32(up, level_1))
        return logits


def vnet(recipe: Recipe) -> nn.Module:
    """Return a V-Net: five levels, kernels of 5x5x5, batch norm, ELU.

    Dropout: channels, on the two deepest levels and on every skip connection, as MONAI places it (there 0.5).
    """
    config = recipe.network
    return VNet(len(recipe.hu_windows), recipe.classes, width=config.width, dropout=config.dropout)


class UNetPlusPlus(nn.Module):
    """MONAI's BasicUNetPlusPlus, which returns a list, reduced to the output of its deepest node."""

    def __init__(self, in_channels: int, out_channels: int, *, width: int, dropout: float) -> None:
        from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

        super().__init__()
        features = tuple(width * level for level in (1, 1, 2, 4, 8, 1))
        self.nodes = BasicUNetPlusPlus(
            3, in_channels, out_channels, features=features, dropout=dropout
        )
        # The heads of the shallower nodes are for deep supervision only: here they would never be trained.
        for name in ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3"):
            setattr(self.nodes, name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, X, Y, Z)` for sizes that divide by 16."""
        return torch.as_tensor(self.nodes(x)[0])


def basicunetplusplus(recipe: Recipe) -> nn.Module:
    """Return a UNet++ (Zhou et al. 2018) of five levels with MONAI's channels: 1, 1, 2, 4, 8 widths.

    Dropout: voxels, after each convolution.
    """
    config = recipe.network
    return UNetPlusPlus(
        len(recipe.hu_windows), recipe.classes, width=config.width, dropout=config.dropout
    )


def attentionunet(recipe: Recipe) -> nn.Module:
    """Return MONAI's AttentionUnet (Oktay et al. 2018) of five levels.

    Dropout: voxels, after each convolution of the encoder and after each merge.
    """
    from monai.networks.nets.attentionunet import AttentionUnet

    return AttentionUnet(
        3,
        len(recipe.hu_windows),
        recipe.classes,
        channels=_five_levels(recipe),
        strides=(2, 2, 2, 2),
        dropout=recipe.network.dropout,
    )


def swinunetr(recipe: Recipe) -> nn.Module:
    """Return MONAI's SwinUNETR (Hatamizadeh et al. 2022): windows of 7, 3-6-12-24 heads, two layers a stage.

    Dropout: values of the embedded patches and of each transformer's projections (`drop_rate`).
    """
    from monai.networks.nets.swin_unetr import SwinUNETR

    return SwinUNETR(
        len(recipe.hu_windows),
        recipe.classes,
        feature_size=recipe.network.width,
        drop_rate=recipe.network.dropout,
    )


def anatomynet(recipe: Recipe) -> nn.Module:
    """Return an `AnatomyNet`, which documents its dropout."""
    config = recipe.network
    return AnatomyNet(
        len(recipe.hu_windows), recipe.classes, width=config.width, dropout=config.dropout
    )


def _five_levels(recipe: Recipe) -> tuple[int, ...]:
    return tuple(recipe.network.width * level for level in FIVE_LEVELS)
