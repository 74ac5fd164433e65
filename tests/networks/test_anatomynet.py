import torch
from torch import nn

from lib.networks.anatomynet import AnatomyNet, ResidualBlock, SqueezeExcitation
from tests.networks.stages import stage_shapes

# (channels, X, Y, Z) of the output of each stage for an input of 1 x 16 x 12 x 8: 28, 30, 32, 34 channels at
# half size, 14 at full size.
STAGES = {
    "stem": (28, 8, 6, 4),
    "encoder_1": (30, 8, 6, 4),
    "encoder_2": (32, 8, 6, 4),
    "encoder_3": (34, 8, 6, 4),
    "merge_3": (32, 8, 6, 4),
    "decoder_3": (32, 8, 6, 4),
    "merge_2": (30, 8, 6, 4),
    "decoder_2": (30, 8, 6, 4),
    "merge_1": (28, 8, 6, 4),
    "decoder_1": (28, 8, 6, 4),
    "up": (14, 16, 12, 8),
    "merge_0": (14, 16, 12, 8),
    "head": (10, 16, 12, 8),
}
INPUT_CHANNELS = {"merge_3": 34 + 32, "merge_2": 32 + 30, "merge_1": 30 + 28, "merge_0": 14 + 1}


def test_every_stage_has_the_channels_and_size_of_the_authors_program() -> None:
    outputs, channels = stage_shapes(AnatomyNet().eval(), STAGES, torch.zeros(1, 1, 16, 12, 8))
    assert outputs == STAGES
    assert {name: channels[name] for name in INPUT_CHANNELS} == INPUT_CHANNELS


def block(n: int, m: int, hidden: int, shortcut: int = 1) -> int:
    """Return the parameter count of a block n -> m: convolutions, batch norms, SE, and a shortcut if n != m."""
    body = 27 * n * m + 2 * m + 27 * m * m + 2 * m
    scale = (m * hidden + hidden) + (hidden * m + m) if hidden else 0
    return body + scale + (shortcut**3 * n * m + 2 * m if n != m else 0)


def test_parameter_count_is_that_of_the_authors_program() -> None:
    # Hidden layers: 30, 32, 34 // 15 = 2 and 28 // 15 = 1 in the encoder and the second blocks of the
    # decoder; 32 // 16 = 2, 30 // 16 = 1, 28 // 16 = 1 in the merging blocks.
    encoder = block(28, 30, 2) + block(30, 30, 2) + block(30, 32, 2) + block(32, 32, 2)
    encoder += block(32, 34, 2) + block(34, 34, 2)
    decoder = block(66, 32, 2) + block(32, 32, 2) + block(62, 30, 1) + block(30, 30, 2)
    decoder += block(58, 28, 1) + block(28, 28, 1)
    stem, up, head = 27 * 28 + 2 * 28, 8 * 28 * 14 + 14, 27 * 14 * 10 + 10
    expected = stem + encoder + decoder + up + block(15, 14, 0, shortcut=3) + head
    assert expected == 734_417
    assert sum(p.numel() for p in AnatomyNet(1, 10).parameters()) == expected


def test_there_is_one_downsampling_and_one_upsampling() -> None:
    network = AnatomyNet()
    strides = [m.stride for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert strides.count((2, 2, 2)) == 1
    assert set(strides) == {(1, 1, 1), (2, 2, 2)}
    ups = [m.stride for m in network.modules() if isinstance(m, nn.ConvTranspose3d)]
    assert ups == [(2, 2, 2)]
    assert not [m for m in network.modules() if isinstance(m, nn.MaxPool3d | nn.AvgPool3d)]


def test_every_block_but_the_last_squeezes_and_excites() -> None:
    network = AnatomyNet()
    blocks = {name: m for name, m in network.named_modules() if isinstance(m, ResidualBlock)}
    assert len(blocks) == 13
    plain = [name for name, m in blocks.items() if not isinstance(m.scale, SqueezeExcitation)]
    assert plain == ["merge_0"]


def test_squeeze_and_excitation_scales_each_channel_by_one_number_between_0_and_1() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 6, 4, 4, 4) + 0.5
    ratio = SqueezeExcitation(6, 2)(image) / image
    assert torch.allclose(ratio.amax(dim=(2, 3, 4)), ratio.amin(dim=(2, 3, 4)))
    assert bool(((ratio > 0) & (ratio < 1)).all())
    assert len(ratio[:, :, 0, 0, 0].unique()) == 12


def test_a_narrow_network_keeps_its_channels_rising() -> None:
    network = AnatomyNet(2, 4, width=2)
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert sorted(set(widths)) == [1, 2, 3, 4, 5]
