"""AnatomyNet (Zhu et al., Medical Physics 46(2), 2019, arXiv 1808.05238).

From the paper (abstract; "Network architecture" and its figure): a U-Net on the whole CT with a single
downsampling, so that organs of a few voxels are preserved; squeeze-and-excitation residual blocks; features of
the encoder are concatenated in the decoder, and the CT itself before the last layers.

Details that the paper leaves open follow the program that its authors published
(github.com/wentaozhu/AnatomyNet-for-anatomical-segmentation, `src/AnatomyNet.py`): 28, 30, 32 and 34
channels, two blocks a stage, leaky ReLU of slope 0.01 also inside the squeeze-and-excitation, the
reductions 15 and 16, a 3x3x3 shortcut in the last block, Kaiming initialisation.

Departures: trained and run on the recipe's crops, as its peers are, not on whole volumes; logits are
returned, not a softmax; dropout, off by default (ADR 0012). Axes are `(B, C, X, Y, Z)`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

DIVISOR = (2, 2, 2)
"""Factor of the single downsampling along x, y and z."""
REDUCTION = 15
"""Ratio of channels to hidden units in a block's squeeze-and-excitation."""
MERGE_REDUCTION = 16
"""The same ratio in the blocks that merge features of the encoder."""
SLOPE = 0.01
"""Slope of the leaky ReLU."""


class SqueezeExcitation(nn.Module):
    """Scaling of each channel by a number computed from the channel means (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, X, Y, Z)` of the same shape."""
        scale = torch.sigmoid(self.excite(self.activation(self.squeeze(x.mean(dim=(2, 3, 4))))))
        return x * scale[:, :, None, None, None]


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3x3 with batch normalisation, an optional squeeze-and-excitation, a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        reduction: Ratio of the squeeze-and-excitation; None for a block without it.
        shortcut_kernel: Kernel of the shortcut's convolution, where the channels differ.
    """

    def __init__(
        self, in_channels: int, out_channels: int, reduction: int | None, shortcut_kernel: int = 1
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(in_channels, out_channels, 3),
            nn.LeakyReLU(SLOPE, inplace=True),
            *_convolution(out_channels, out_channels, 3),
        )
        self.scale = SqueezeExcitation(out_channels, reduction) if reduction else nn.Identity()
        self.shortcut = (
            nn.Sequential(*_convolution(in_channels, out_channels, shortcut_kernel))
            if in_channels != out_channels
            else nn.Identity()
        )
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, out_channels, X, Y, Z)`."""
        result: Tensor = self.activation(self.scale(self.body(x)) + self.shortcut(x))
        return result


class AnatomyNet(nn.Module):
    """AnatomyNet: one strided convolution, then ten residual stages at half the size.

    With `w = width` (28 by the authors) and `s = w / 14`, so that the channels are 28, 30, 32 and 34:

    | stage | operation | channels | size |
    |---|---|---|---|
    | `stem` | Conv 3x3x3, stride 2 - BN - leaky ReLU | in -> w | 1/2 |
    | `encoder_1`, `_2`, `_3` | 2 SE residual blocks each | w -> w+s -> w+2s -> w+3s | 1/2 |
    | `merge_3`, `decoder_3` | concat `encoder_2`; 2 SE residual blocks | 2w+5s -> w+2s | 1/2 |
    | `merge_2`, `decoder_2` | concat `encoder_1`; 2 SE residual blocks | 2w+3s -> w+s | 1/2 |
    | `merge_1`, `decoder_1` | concat `stem`; 2 SE residual blocks | 2w+s -> w | 1/2 |
    | `up` | transposed conv 2x2x2, stride 2 | w -> w/2 | 1 |
    | `merge_0` | concat the CT; residual block without SE | w/2+in -> w/2 | 1 |
    | `head` | Conv 3x3x3 | w/2 -> out | 1 |

    Args:
        in_channels: Channels of the input; 1 for one HU window.
        out_channels: Classes `K`, background included.
        width: Channels of the first stage, at least 2.
        dropout: Probability of dropping a channel after `encoder_3` and before the head; 0 is off.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 10, *, width: int = 28, dropout: float = 0.0
    ) -> None:
        super().__init__()
        step = max(1, round(width / 14))
        w1, w2, w3, w4 = (width + step * i for i in range(4))
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, w1, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm3d(w1),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        self.encoder_1 = _stage(w1, w2)
        self.encoder_2 = _stage(w2, w3)
        self.encoder_3 = _stage(w3, w4)
        self.merge_3 = ResidualBlock(w4 + w3, w3, MERGE_REDUCTION)
        self.decoder_3 = ResidualBlock(w3, w3, REDUCTION)
        self.merge_2 = ResidualBlock(w3 + w2, w2, MERGE_REDUCTION)
        self.decoder_2 = ResidualBlock(w2, w2, REDUCTION)
        self.merge_1 = ResidualBlock(w2 + w1, w1, MERGE_REDUCTION)
        self.decoder_1 = ResidualBlock(w1, w1, REDUCTION)
        self.up = nn.ConvTranspose3d(w1, w1 // 2, 2, stride=2)
        self.merge_0 = ResidualBlock(w1 // 2 + in_channels, w1 // 2, None, shortcut_kernel=3)
        self.head = nn.Conv3d(w1 // 2, out_channels, 3, padding=1)
        self.dropout = nn.Dropout3d(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, X, Y, Z)` for an image `(B, C, X, Y, Z)` whose sizes are even."""
        half = self.stem(x)
        first = self.encoder_1(half)
        second = self.encoder_2(first)
        third = self.dropout(self.encoder_3(second))
        up = self.decoder_3(self.merge_3(torch.cat([third, second], dim=1)))
        up = self.decoder_2(self.merge_2(torch.cat([up, first], dim=1)))
        up = self.decoder_1(self.merge_1(torch.cat([up, half], dim=1)))
        full = self.merge_0(torch.cat([self.up(up), x], dim=1))
        logits: Tensor = self.head(self.dropout(full))
        return logits


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, out_channels, REDUCTION),
        ResidualBlock(out_channels, out_channels, REDUCTION),
    )


def _convolution(in_channels: int, out_channels: int, kernel: int) -> Iterator[nn.Module]:
    yield nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    yield nn.BatchNorm3d(out_channels)
