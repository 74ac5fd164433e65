import pytest
import torch
from torch import Tensor

from lib.backends.interface import WINDOWS_AT_ONCE
from lib.inference.windows import sliding_window, window_calls

SIDE = 8


class DenseIsOrgan:
    """A network for which voxels above 0 are organ 1, and all others background; keeps what it was given."""

    def __init__(self) -> None:
        self.windows: list[Tensor] = []

    def __call__(self, windows: Tensor) -> Tensor:
        self.windows += list(windows)
        return torch.cat([-10 * windows, 10 * windows], dim=1)


@pytest.mark.parametrize("size", [(7, 20, 33), (16, 8, 8), (3, 40, 12)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.6, 0.9])
def test_the_sliding_window_is_bit_identical_to_monais(
    size: tuple[int, int, int], overlap: float
) -> None:
    from monai.inferers.utils import sliding_window_inference

    torch.manual_seed(1)
    image, window = torch.randn(1, 2, *size), (16, 8, 12)
    network = torch.nn.Conv3d(2, 5, 3, padding=1)
    with torch.inference_mode():
        actual = sliding_window(image, window, network, overlap=overlap)
        monais = sliding_window_inference(
            image,
            window,
            sw_batch_size=WINDOWS_AT_ONCE,
            predictor=network,
            overlap=overlap,
            mode="gaussian",
            padding_mode="constant",
            cval=-1.0,
        )
    assert torch.equal(actual, torch.as_tensor(monais))


def test_a_long_scan_gets_all_windows_at_an_organ_and_covering_ones_elsewhere() -> None:
    image = torch.full((1, 1, SIDE, SIDE, 80), -1.0)
    image[..., 38:43] = 1.0
    every, few = DenseIsOrgan(), DenseIsOrgan()
    complete = sliding_window(image, (SIDE,) * 3, every, overlap=0.5)
    localised = sliding_window(image, (SIDE,) * 3, few, overlap=0.5, is_localised=True)
    # Windows start at 0, 4, ... 72. Those at 0, 8, ... 72 cover the scan. Of the others, the window of voxels
    # 36..43 holds the organ (38..42), and that of 44..51 is 2 voxels from it.
    assert len(every.windows) == 19
    assert len(few.windows) == 10 + 2
    organ = image > 0
    torch.testing.assert_close(
        localised[:, 1:][organ], complete[:, 1:][organ], rtol=1e-6, atol=1e-6
    )
    assert torch.equal(localised.argmax(dim=1), complete.argmax(dim=1))


def test_windows_are_added_as_long_as_an_organ_reaches_further() -> None:
    """The covering windows show the organ's first voxels only; each further window shows a little more."""
    image = torch.full((1, 1, SIDE, SIDE, 40), -1.0)
    covering = {0, 8, 16, 24, 32}
    calls: list[int] = []

    def predict(windows: Tensor) -> Tensor:
        logits = torch.zeros(len(windows), 2, SIDE, SIDE, SIDE)
        logits[:, 0] = 10.0
        for number, window in enumerate(windows):
            start = int(window[0, 0, 0, 0].item())
            calls.append(start)
            if start == 0:
                logits[number, 1, :, :, 6:] = 20.0
            elif start not in covering:
                # Found by windows between two covering ones, up to their last voxel.
                logits[number, 1] = 30.0
        return logits

    # The first voxel of each window says where it is.
    image[0, 0] = torch.arange(40.0).expand(SIDE, SIDE, 40)
    sliding_window(image, (SIDE,) * 3, predict, overlap=0.5, is_localised=True)
    assert calls[:5] == [0, 8, 16, 24, 32]
    assert sorted(set(calls) - covering) == [4, 12, 20, 28]


def test_an_image_without_organs_gets_the_covering_windows_only() -> None:
    network = DenseIsOrgan()
    image = torch.full((1, 1, 20, 20, 20), -1.0)
    logits = sliding_window(image, (SIDE,) * 3, network, overlap=0.5, is_localised=True)
    assert len(network.windows) == 3**3
    assert bool((logits.argmax(dim=1) == 0).all())


@pytest.mark.parametrize("size", [(8, 8, 80), (7, 20, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_the_number_of_calls_is_known_before(size: tuple[int, int, int], overlap: float) -> None:
    calls = []

    def network(windows: Tensor) -> Tensor:
        calls.append(len(windows))
        return torch.cat([-windows, windows], dim=1)

    sliding_window(torch.zeros(1, 1, *size), (SIDE,) * 3, network, overlap=overlap)
    assert window_calls(size, (SIDE,) * 3, overlap=overlap) == len(calls)
