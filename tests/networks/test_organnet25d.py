import torch
from torch import nn

from lib.networks.losses import FocalDiceLoss
from lib.networks.organnet25d import OrganNet25D, ResSE
from lib.recipes.schema import PDDCA
from tests.networks.stages import stage_shapes

# (channels, X, Y, Z) of the output of each stage for width 16 and an input of 1 x 16 x 24 x 8, from the
# table of Chen et al. 2021, fig. 1.
STAGES = {
    "encoder_2d": (16, 16, 24, 8),
    "pool_1": (16, 8, 12, 8),
    "coarse_1": (32, 8, 12, 8),
    "pool_2": (32, 4, 6, 4),
    "coarse_2": (64, 4, 6, 4),
    "fine_1": (128, 4, 6, 4),
    "fine_2": (256, 4, 6, 4),
    "reduce_2": (128, 4, 6, 4),
    "fine_3": (128, 4, 6, 4),
    "reduce_3": (64, 4, 6, 4),
    "coarse_3": (64, 4, 6, 4),
    "up_1": (32, 8, 12, 8),
    "coarse_4": (32, 8, 12, 8),
    "up_2": (16, 16, 24, 8),
    "decoder_2d": (32, 16, 24, 8),
    "head": (10, 16, 24, 8),
}
INPUT_CHANNELS = {"fine_3": 256, "coarse_3": 128, "coarse_4": 64, "decoder_2d": 32}


def small() -> OrganNet25D:
    torch.manual_seed(0)
    return OrganNet25D(1, 4, width=2).eval()


def test_every_stage_has_the_channels_and_the_size_of_the_papers_table() -> None:
    outputs, channels = stage_shapes(OrganNet25D().eval(), STAGES, torch.zeros(1, 1, 16, 24, 8))
    assert outputs == STAGES
    assert {name: channels[name] for name in INPUT_CHANNELS} == INPUT_CHANNELS


def test_parameter_count_is_that_of_the_design() -> None:
    count = sum(p.numel() for p in OrganNet25D(1, 10).parameters())
    assert count == 8_061_178  # "about 8.06 M"
    slim = sum(p.numel() for p in OrganNet25D(1, 10, dilations=(1,)).parameters())
    assert round(slim / 1e6, 2) == 2.75


def test_there_are_two_downsamplings_and_the_first_leaves_z_alone() -> None:
    network = OrganNet25D()
    pools = [m.kernel_size for m in network.modules() if isinstance(m, nn.MaxPool3d)]
    assert pools == [(2, 2, 1), (2, 2, 2)]
    strides = [m.stride for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert set(strides) == {(1, 1, 1)}
    ups = [m.stride for m in network.modules() if isinstance(m, nn.ConvTranspose3d)]
    assert ups == [(2, 2, 2), (2, 2, 1)]


def test_the_2d_blocks_do_not_look_across_slices() -> None:
    network = OrganNet25D()
    for block in (network.encoder_2d, network.decoder_2d):
        kernels = [m.kernel_size for m in block.modules() if isinstance(m, nn.Conv3d)]
        assert kernels == [(3, 3, 1), (3, 3, 1)]


def test_dilations_are_1_2_5_in_every_fine_block() -> None:
    network = OrganNet25D()
    for block in (network.fine_1, network.fine_2, network.fine_3):
        rates = [m.dilation for m in block.modules() if isinstance(m, nn.Conv3d)]
        assert rates == [(1, 1, 1), (2, 2, 2), (5, 5, 5)]


def test_receptive_field_reaches_as_far_as_the_convolutions_allow() -> None:
    # In z, in voxels of the input. Level 2 (two convolutions of 3): 2 each side before the pooling. Level 3,
    # voxels of 2 slices: coarse_2 2, fine_1 1+2+5 = 8, fine_2 8, fine_3 8, coarse_3 2, together 28; then
    # coarse_4 2 on level 2. 2 * 28 + 2 + 2 = 60 each side, and up to 1 for the pairs of the pooling.
    network = small()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.constant_(module.weight, 0.05)
    depth = 161
    image = torch.zeros(1, 1, 4, 4, depth, requires_grad=True)
    # ResSE pools over the whole volume: those paths are cut, to measure the convolutions alone.
    for module in network.modules():
        if isinstance(module, ResSE):
            nn.init.zeros_(module.excite.weight)
    network((image + 1).abs())[0, 1, 2, 2, depth // 2].backward()
    assert image.grad is not None
    reach = torch.nonzero(image.grad[0, 0].abs().amax(dim=(0, 1))).flatten()
    assert depth // 2 - int(reach.min()) in (60, 61)
    assert int(reach.max()) - depth // 2 in (60, 61)


def test_the_output_has_the_size_of_the_input() -> None:
    network = small()
    for size in [(16, 16, 8), (17, 18, 9), (19, 21, 5), (33, 16, 1), (4, 7, 2), (51, 3, 3)]:
        with torch.inference_mode():
            assert network(torch.zeros(2, 1, *size)).shape == (2, 4, *size)


def test_padding_is_at_the_far_end_and_does_not_shift_voxels() -> None:
    network = small()
    image = torch.randn(1, 1, 16, 16, 8)
    with torch.inference_mode():
        whole = network(image)
        # A size that needs padding gives nearly the same result far from it as one that does not, which it
        # would not if the volume had been shifted. Only squeeze-and-excitation sees the whole volume.
        part = network(image[..., :7])
    assert (whole[..., 0, 0, 0] - part[..., 0, 0, 0]).abs().max() < 0.2
    assert part.shape[-1] == 7


def test_the_network_is_not_mirror_symmetric() -> None:
    network = small()
    image = torch.zeros(1, 1, 16, 16, 4)
    image[:, :, 2:6, 4:12] = 1
    with torch.inference_mode():
        difference = (network(image) - network(image.flip(2)).flip(2)).abs().max()
    assert difference > 1e-4  # the kernels are not symmetric, so the sides can be learned


def test_batch_items_are_independent_in_evaluation() -> None:
    network = small()
    images = torch.randn(2, 1, 12, 12, 6)
    with torch.inference_mode():
        together, alone = network(images), network(images[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_dropout_is_off_by_default_and_can_be_on() -> None:
    image = torch.randn(1, 1, 8, 8, 4)
    plain = small().train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()
    torch.testing.assert_close(plain(image), plain(image))
    dropping = OrganNet25D(1, 4, width=4, dropout=0.5).eval()
    dropping.dropout.train()
    assert not torch.equal(dropping(image), dropping(image))


def test_torch_export_gives_the_same_logits_at_another_size() -> None:
    network = small()
    x, y = 4 * torch.export.Dim("x4", min=2, max=64), 4 * torch.export.Dim("y4", min=2, max=64)
    z = 2 * torch.export.Dim("z2", min=2, max=64)
    exported = torch.export.export(
        network, (torch.zeros(1, 1, 16, 20, 8),), dynamic_shapes={"x": {2: x, 3: y, 4: z}}
    ).module()
    image = torch.randn(1, 1, 24, 16, 12)
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-5)


def test_the_network_overfits_one_phantom() -> None:
    torch.manual_seed(0)
    network = OrganNet25D(1, 10, width=4)
    label = torch.zeros(1, 32, 32, 16, dtype=torch.long)
    label[:, 4:10, 8:20, 4:12] = 6
    label[:, 20:28, 8:20, 2:10] = 7
    label[:, 14:17, 20:23, 3:14] = 2
    image = (label > 0)[:, None].float() + 0.1 * torch.randn(1, 1, 32, 32, 16)
    known = torch.ones(1, 10, dtype=torch.bool)
    loss_function = FocalDiceLoss(PDDCA)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(90):
        optimizer.zero_grad()
        loss_function(network(image), label, known).backward()
        optimizer.step()
    predicted = network(image).argmax(dim=1)
    for value in (2, 6, 7):
        overlap = 2 * ((predicted == value) & (label == value)).sum()
        assert overlap / ((predicted == value).sum() + (label == value).sum()) > 0.9
