"""OrganNet2.5D (Chen et al., MICCAI 2021, arXiv 2109.12634): its blocks, then the network.

Axes are `(B, C, X, Y, Z)` everywhere in this project, as MONAI loads volumes; the paper's tuples
`(z, y, x)` are mirrored: its convolution `(1, 3, 3)` is `(3, 3, 1)` here, its pooling `(1, 2, 2)` is
`(2, 2, 1)`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

IN_PLANE = (2, 2, 1)
ISOTROPIC = (2, 2, 2)
DIVISORS = (4, 4, 2)
"""Combined factor of the two poolings along x, y and z; other sizes are padded, and the result is cropped."""


class ConvUnit(nn.Sequential):
    """Convolution, batch normalisation, ReLU; the size is kept."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], dilation: int = 1
    ) -> None:
        x, y, z = kernel
        padding = (dilation * (x // 2), dilation * (y // 2), dilation * (z // 2))
        super().__init__(
            nn.Conv3d(
                in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
            ),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResSE(nn.Module):
    """Squeeze and excitation with a residual: `x * s + x` (Chen et al., section 2.3).

    `s` is one number per channel: global average pool - FC - ReLU - FC - sigmoid.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, X, Y, Z)` of the same shape."""
        pooled = x.mean(dim=(2, 3, 4))
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(pooled))))
        return torch.addcmul(x, x, scale[:, :, None, None, None])


def _pooled(x: Tensor, pool: nn.MaxPool3d) -> Tensor:
    """Return the pooled image in its own precision; autocast would turn it into float32 and back."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return pool(x)  # type: ignore[no-any-return]
    return pool(x)  # type: ignore[no-any-return]


def block_2d(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two in-plane convolutions, which do not mix slices."""
    return nn.Sequential(
        ConvUnit(in_channels, out_channels, (3, 3, 1)),
        ConvUnit(out_channels, out_channels, (3, 3, 1)),
    )


def coarse_3d(in_channels: int, out_channels: int, reduction: int) -> nn.Sequential:
    """Return two 3x3x3 convolutions and a ResSE."""
    return nn.Sequential(
        ConvUnit(in_channels, out_channels, (3, 3, 3)),
        ConvUnit(out_channels, out_channels, (3, 3, 3)),
        ResSE(out_channels, reduction),
    )


def fine_3d(
    in_channels: int, out_channels: int, dilations: Sequence[int], reduction: int
) -> nn.Sequential:
    """Return hybrid dilated convolutions (Wang et al., WACV 2018) and a ResSE."""
    channels = [in_channels, *[out_channels] * len(dilations)]
    units = [
        ConvUnit(channels[i], out_channels, (3, 3, 3), dilation)
        for i, dilation in enumerate(dilations)
    ]
    return nn.Sequential(*units, ResSE(out_channels, reduction))


class OrganNet25D(nn.Module):
    """OrganNet2.5D, which keeps small organs by downsampling twice only.

    With `w = width` (16 in the paper) and an input of `(X, Y, Z)`:

    | stage | operation | channels | size |
    |---|---|---|---|
    | `encoder_2d` | 2 x [Conv (3,3,1) - BN - ReLU] | in -> w | X, Y, Z |
    | pool | max (2,2,1) | w | X/2, Y/2, Z |
    | `coarse_1` | 2 x [Conv (3,3,3) - BN - ReLU] + ResSE | w -> 2w | X/2, Y/2, Z |
    | pool | max (2,2,2) | 2w | X/4, Y/4, Z/2 |
    | `coarse_2` | 2 x [Conv (3,3,3) - BN - ReLU] + ResSE | 2w -> 4w | X/4, Y/4, Z/2 |
    | `fine_1` | HDC + ResSE | 4w -> 8w | X/4, Y/4, Z/2 |
    | `fine_2`, `reduce_2` | HDC + ResSE, Conv (1,1,1) | 8w -> 16w -> 8w | X/4, Y/4, Z/2 |
    | `fine_3`, `reduce_3` | concat `fine_1`; HDC + ResSE, Conv (1,1,1) | 16w -> 8w -> 4w | X/4, Y/4, Z/2 |
    | `coarse_3` | concat `coarse_2`; 2 x conv + ResSE | 8w -> 4w | X/4, Y/4, Z/2 |
    | `up_1` | transposed conv, stride (2,2,2) | 4w -> 2w | X/2, Y/2, Z |
    | `coarse_4` | concat `coarse_1`; 2 x conv + ResSE | 4w -> 2w | X/2, Y/2, Z |
    | `up_2` | transposed conv, stride (2,2,1) | 2w -> w | X, Y, Z |
    | `decoder_2d` | concat `encoder_2d`; 2 x [Conv (3,3,1) - BN - ReLU] | 2w -> 2w | X, Y, Z |
    | `head` | Conv (1,1,1) | 2w -> out | X, Y, Z |

    Details that the paper does not give: the reduction of ResSE (4), the dilations of the HDC
    (1, 2, 5: no gridding holes), and the `1 x 1 x 1` convolutions without normalisation (ADR 0003).

    Args:
        in_channels: Channels of the input; 1 for one HU window.
        out_channels: Classes `K`, background included.
        width: Channels of the first level.
        dilations: Dilation rates of each HDC block, one convolution per rate.
        se_reduction: Ratio of channels to hidden units in the ResSE.
        dropout: Probability of dropping a channel after each fine block and before the head; 0 is off.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 10,
        *,
        width: int = 16,
        dilations: Sequence[int] = (1, 2, 5),
        se_reduction: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        w, r = width, se_reduction
        self.encoder_2d = block_2d(in_channels, w)
        self.coarse_1 = coarse_3d(w, 2 * w, r)
        self.coarse_2 = coarse_3d(2 * w, 4 * w, r)
        self.fine_1 = fine_3d(4 * w, 8 * w, dilations, r)
        self.fine_2 = fine_3d(8 * w, 16 * w, dilations, r)
        self.reduce_2 = nn.Conv3d(16 * w, 8 * w, 1)
        self.fine_3 = fine_3d(16 * w, 8 * w, dilations, r)
        self.reduce_3 = nn.Conv3d(8 * w, 4 * w, 1)
        self.coarse_3 = coarse_3d(8 * w, 4 * w, r)
        self.up_1 = nn.ConvTranspose3d(4 * w, 2 * w, ISOTROPIC, stride=ISOTROPIC)
        self.coarse_4 = coarse_3d(4 * w, 2 * w, r)
        self.up_2 = nn.ConvTranspose3d(2 * w, w, IN_PLANE, stride=IN_PLANE)
        self.decoder_2d = block_2d(2 * w, 2 * w)
        self.head = nn.Conv3d(2 * w, out_channels, 1)
        self.pool_1 = nn.MaxPool3d(IN_PLANE)
        self.pool_2 = nn.MaxPool3d(ISOTROPIC)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(B, K, X, Y, Z)` for an image `(B, C, X, Y, Z)` of any size."""
        size_x, size_y, size_z = x.shape[2], x.shape[3], x.shape[4]
        pad_x, pad_y, pad_z = -size_x % 4, -size_y % 4, -size_z % 2
        if pad_x or pad_y or pad_z:
            x = functional.pad(x, (0, pad_z, 0, pad_y, 0, pad_x), mode="replicate")

        level_1 = self.encoder_2d(x)
        level_2 = self.coarse_1(_pooled(level_1, self.pool_1))
        level_3 = self.coarse_2(_pooled(level_2, self.pool_2))
        fine_1 = self.dropout(self.fine_1(level_3))
        fine_2 = self.dropout(self.reduce_2(self.fine_2(fine_1)))
        fine_3 = self.dropout(self.reduce_3(self.fine_3(torch.cat([fine_1, fine_2], dim=1))))
        up = self.up_1(self.coarse_3(torch.cat([level_3, fine_3], dim=1)))
        up = self.up_2(self.coarse_4(torch.cat([level_2, up], dim=1)))
        logits: Tensor = self.head(self.dropout(self.decoder_2d(torch.cat([level_1, up], dim=1))))
        if pad_x or pad_y or pad_z:
            logits = logits[:, :, :size_x, :size_y, :size_z]
        return logits
