"""Peers of OrganNet2.5D: networks of MONAI, each from a recipe, and what lets them take any size.

Every builder takes its channels in and out from the recipe and its first level from `network.width`. Which
layers `network.dropout` reaches is said in each; ADR 0012 gives the reasons.
"""

import math

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.vnet import (
    DownTransition,
    InputTransition,
    OutputTransition,
    UpTransition,
)
from torch import Tensor, nn
from torch.nn import functional

from lib.errors import ConfigError
from lib.imaging.quantities import ShapeVox
from lib.networks.anatomynet import AnatomyNet
from lib.networks.nnunet_plan import UNetPlan, plan_unet
from lib.recipes.schema import Recipe

FIVE_LEVELS = (1, 2, 4, 8, 16)
"""Channels of each level, in widths, where channels double."""


class Padded(nn.Module):
    """A network made to take any size: padded at the far end with the last voxel, and cropped back.

    Padding also keeps more than one voxel on the deepest level: normalisation over one is not defined.
    """

    def __init__(self, network: nn.Module, divisor: ShapeVox) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, X, Y, Z)` for an image `(B, C, X, Y, Z)` of any size."""
        size_x, size_y, size_z = x.shape[2], x.shape[3], x.shape[4]
        by_x, by_y, by_z = self.divisor
        pad_x, pad_y, pad_z = -size_x % by_x, -size_y % by_y, -size_z % by_z
        if (size_x + pad_x, size_y + pad_y, size_z + pad_z) == self.divisor:
            pad_x += by_x
        if pad_x or pad_y or pad_z:
            x = functional.pad(x, (0, pad_z, 0, pad_y, 0, pad_x), mode="replicate")
        logits: Tensor = self.network(x)
        return logits[:, :, :size_x, :size_y, :size_z]


def plan(recipe: Recipe) -> UNetPlan:
    """Return the levels of `dynunet` for the recipe's crop and spacing.

    Raises:
        ConfigError: If the crop is too small to be pooled twice, which MONAI's DynUNet needs.
    """
    found = plan_unet(recipe.crop_vox, recipe.spacing_mm)
    if len(found.strides) < 3:
        raise ConfigError(
            f"recipe {recipe.name!r}: network 'dynunet' pools twice or more, and a crop_vox of "
            f"{recipe.crop_vox} leaves room for less: give it 16 voxels a side or more"
        )
    return found


def dynunet(recipe: Recipe) -> nn.Module:
    """Return MONAI's DynUNet with nnU-Net's plan: instance norm, leaky ReLU, one head, no supervision below.

    Dropout: voxels, after each convolution of the encoder (nnU-Net has none).
    """
    levels = plan(recipe)
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
    # MONAI holds each level twice, by these names and within `skip_layers`, which alone is run: one tensor
    # under two names cannot be written to safetensors.
    del network.input_block, network.downsamples, network.bottleneck, network.upsamples
    return network


def segresnet(recipe: Recipe) -> nn.Module:
    """Return MONAI's SegResNet with the blocks of Myronenko (2018): 1, 2, 2, 4 down and 1, 1, 1 up.

    Group norm is of 8 groups, or of as many as divide a width that 8 does not. Dropout: channels, after the
    first convolution, as in the paper (there 0.2).
    """
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
    """V-Net (Milletari et al. 2016) of MONAI's blocks, which MONAI's own `VNet` fixes at a width of 16."""

    def __init__(self, in_channels: int, out_channels: int, *, width: int, dropout: float) -> None:
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
    """MONAI's BasicUNetPlusPlus, which returns a list, with the output of its deepest node alone."""

    def __init__(self, in_channels: int, out_channels: int, *, width: int, dropout: float) -> None:
        super().__init__()
        features = tuple(width * level for level in (1, 1, 2, 4, 8, 1))
        self.nodes = BasicUNetPlusPlus(
            3, in_channels, out_channels, features=features, dropout=dropout
        )
        # The heads of the shallower nodes are for deep supervision: they would be stored and never trained.
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
    return SwinUNETR(
        len(recipe.hu_windows),
        recipe.classes,
        feature_size=recipe.network.width,
        drop_rate=recipe.network.dropout,
    )


def anatomynet(recipe: Recipe) -> nn.Module:
    """Return an AnatomyNet; see there for dropout."""
    config = recipe.network
    return AnatomyNet(
        len(recipe.hu_windows), recipe.classes, width=config.width, dropout=config.dropout
    )


def _five_levels(recipe: Recipe) -> tuple[int, ...]:
    return tuple(recipe.network.width * level for level in FIVE_LEVELS)
