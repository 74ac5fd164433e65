import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib.networks.convolution import (
    TrainableConv3d,
    TrainableConvTranspose3d,
    dilated_weight_gradient,
    with_trainable_convolutions,
)


def leave_garbage() -> None:
    """Fill memory with garbage that a later allocation may reuse."""
    for size in (64, 256, 1024, 4096, 16384, 65536):
        del [torch.full((size,), value) for value in (1e30, -3e20, torch.nan)][:]


def gradient(convolution: nn.Conv3d, image: Tensor) -> Tensor:
    leave_garbage()
    convolution.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        result = convolution(image)
    torch.autograd.backward(result.float().square().sum())
    assert convolution.weight.grad is not None
    return convolution.weight.grad.clone()


@pytest.mark.parametrize(
    ("kernel", "size"),
    [
        (3, (1, 3, 3)),
        (3, (2, 3, 3)),
        (3, (3, 3, 3)),
        (5, (3, 5, 5)),
        (5, (4, 5, 5)),
        (5, (5, 1, 5)),
        (5, (2, 1, 1)),
        (5, (5, 5, 5)),
    ],
)
def test_weight_gradient_is_correct_for_short_axes(kernel: int, size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(16, 16, kernel, padding=kernel // 2, bias=False)
    image = torch.randn(2, 16, *size)
    torch.autograd.backward(convolution(image).square().sum())
    assert convolution.weight.grad is not None
    expected = convolution.weight.grad.clone()
    with_trainable_convolutions(convolution)
    gradients = [gradient(convolution, image) for _ in range(4)]
    assert all(torch.equal(one, gradients[0]) for one in gradients)
    assert float((gradients[0] - expected).norm() / expected.norm()) < 0.02


def test_guarding_changes_no_weights_names_or_outputs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 1, 1))
    image = torch.randn(1, 1, 2, 4, 4)
    before, names = network(image), list(network.state_dict())
    assert with_trainable_convolutions(network) is network
    assert [type(m) for m in network] == [TrainableConv3d, nn.ReLU, TrainableConv3d]
    assert list(network.state_dict()) == names
    assert torch.equal(network(image), before)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"),
    [
        ((12, 12, 24), (3, 3, 3), (2, 2, 2)),
        ((12, 12, 24), (3, 3, 3), (5, 5, 5)),
        # Sizes that the dilation does not divide, and offsets beyond the volume.
        ((7, 9, 11), (3, 3, 3), (2, 3, 4)),
        ((4, 6, 5), (3, 3, 3), (5, 5, 5)),
        ((9, 8, 13), (5, 3, 1), (2, 2, 2)),
    ],
)
def test_weight_gradient_of_a_dilated_convolution_is_that_of_a_plain_loop(
    kind: torch.dtype,
    size: tuple[int, int, int],
    kernel: tuple[int, int, int],
    dilation: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    # Small integers: every product and sum is exact in float32.
    x = torch.randint(-2, 3, (2, 3, *size)).float()
    grad = torch.randint(-2, 3, (2, 4, *size)).float()
    reach = [rate * (extent // 2) for rate, extent in zip(dilation, kernel, strict=True)]
    padded = nn.functional.pad(x, [n for side in reversed(reach) for n in (side, side)])
    expected = torch.zeros(4, 3, *kernel)
    for i, j, k in np.ndindex(kernel):
        a, b, c = i * dilation[0], j * dilation[1], k * dilation[2]
        shifted = padded[:, :, a : a + size[0], b : b + size[1], c : c + size[2]]
        expected[:, :, i, j, k] = torch.einsum("nixyz,noxyz->oi", shifted, grad)
    layout = torch.channels_last_3d
    x, grad = x.to(kind).to(memory_format=layout), grad.to(kind).to(memory_format=layout)
    gradient = dilated_weight_gradient(x, grad, kernel, dilation)
    assert gradient.dtype == kind
    torch.testing.assert_close(gradient.float(), expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize(
    "plain",
    [
        nn.Conv3d(8, 16, 3, padding=5, dilation=5, bias=False),
        nn.Conv3d(8, 16, 3, padding=2, dilation=2),
        nn.Conv3d(8, 4, 1),
        nn.Conv3d(8, 6, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose3d(8, 4, (2, 2, 1), stride=(2, 2, 1)),
    ],
)
def test_a_convolution_trains_as_the_plain_one(plain: nn.Module, *, in_bfloat16: bool) -> None:
    torch.manual_seed(0)
    plain = copy.deepcopy(plain)
    fast = with_trainable_convolutions(copy.deepcopy(plain))
    assert type(fast) in (TrainableConv3d, TrainableConvTranspose3d)
    image = torch.randn(2, 8, 12, 12, 24)
    results = []
    for convolution in (plain, fast):
        x = image.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            result = convolution(x)
        torch.autograd.backward(result.float().square().sum())
        assert x.grad is not None
        results.append([result.detach(), x.grad, *(p.grad for p in convolution.parameters())])
    tolerance = 2e-2 if in_bfloat16 else 1e-5
    for expected, actual in zip(*results, strict=True):
        assert expected is not None
        assert actual is not None
        assert actual.dtype == expected.dtype
        assert float((actual - expected).norm() / expected.norm()) < tolerance
