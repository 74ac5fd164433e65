import pytest
import torch
from torch import Tensor, nn

from lib.networks.build import SafeConv3d, guard_gradients


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
    guard_gradients(convolution)
    gradients = [gradient(convolution, image) for _ in range(4)]
    assert all(torch.equal(one, gradients[0]) for one in gradients)
    assert float((gradients[0] - expected).norm() / expected.norm()) < 0.02


def test_guarding_changes_no_weights_names_or_outputs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 1, 1))
    image = torch.randn(1, 1, 2, 4, 4)
    before, names = network(image), list(network.state_dict())
    assert guard_gradients(network) is network
    assert [type(m) for m in network] == [SafeConv3d, nn.ReLU, SafeConv3d]
    assert list(network.state_dict()) == names
    assert torch.equal(network(image), before)
