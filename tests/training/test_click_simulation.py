from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.errors import ConfigError
from lib.models.registry import Model
from lib.networks.build import build_network
from lib.recipes.schema import ClickConfig, NetworkConfig
from lib.recipes.yaml_files import recipe_from_dict
from lib.training.click_simulation import with_clicks
from lib.training.state import initial_state
from tests.tiny import TINY

GUIDED = replace(
    TINY,
    spacing_mm=(8.0, 8.0, 10.0),
    clicks=ClickConfig(probability=1.0, most=2, radius_mm=12.0),
)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return two crops without clicks; class 1 is a cube about voxel (5, 5, 5), class 2 about (11, 11, 11)."""
    image = torch.full((2, 4, 16, 16, 16), -1.0)
    label = torch.zeros((2, 16, 16, 16), dtype=torch.int64)
    label[:, 3:8, 3:8, 3:8] = 1
    label[:, 9:14, 9:14, 9:14] = 2
    contoured = torch.zeros((2, 8), dtype=torch.bool)
    contoured[:, [0, 1]] = True
    contoured[1, 2] = True
    return image, label, contoured


def nothing(image: Tensor) -> Tensor:
    return torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.int64)


def clicked(
    predict: Callable[[Tensor], Tensor] = nothing, *, seed: int = 0, probability: float = 1.0
) -> Tensor:
    recipe = replace(GUIDED, clicks=replace(GUIDED.clicks, probability=probability))
    rng = np.random.default_rng(seed)
    return with_clicks(*batch(), recipe, predict=predict, rng=rng)


def peaks(channel: Tensor) -> list[list[int]]:
    return torch.nonzero(channel == 1).tolist()


def test_a_missing_organ_is_clicked_in_its_middle_and_an_unknown_one_never() -> None:
    image = clicked()
    assert peaks(image[0, 2]) == [[5, 5, 5]]
    assert all(peak in ([5, 5, 5], [11, 11, 11]) for peak in peaks(image[1, 2]))
    assert (image[:, 3] == -1).all()
    assert (image[:, :2] == -1).all()


def test_an_excess_is_clicked_in_the_channel_to_remove() -> None:
    def too_much(image: Tensor) -> Tensor:
        label = batch()[1][: len(image)].clone()
        label[:, 9:14, 3:8, 3:8] = 1
        return label

    image = clicked(too_much)
    assert peaks(image[0, 3]) == [[11, 5, 5]]
    assert (image[0, 2] == -1).all()


def test_without_an_error_there_is_no_click() -> None:
    assert (clicked(lambda image: batch()[1][: len(image)]) == -1).all()


def test_crops_without_a_draw_stay_as_they_are_and_need_no_run_of_the_network() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    assert (clicked(never, probability=1e-12) == -1).all()


def test_equal_seeds_give_equal_clicks() -> None:
    torch.testing.assert_close(clicked(seed=3), clicked(seed=3))


def test_the_next_round_sees_the_clicks_of_the_first() -> None:
    seen = []

    def predict(image: Tensor) -> Tensor:
        seen.append(int((image[:, 2] == 1).sum()))
        return nothing(image)

    # With this seed both crops get two clicks.
    seed = next(s for s in range(50) if (np.random.default_rng(s).integers(1, 3, 2) == 2).all())
    clicked(predict, seed=seed)
    assert seen == [0, 2]


def test_a_gaussian_falls_with_the_distance_in_mm() -> None:
    channel = clicked()[0, 2]
    # Voxels of 8 x 8 x 10 mm, a standard deviation of 12 mm.
    assert float(channel[6, 5, 5]) == pytest.approx(2 * np.exp(-((8 / 12) ** 2) / 2) - 1, abs=1e-6)
    assert float(channel[5, 5, 6]) == pytest.approx(2 * np.exp(-((10 / 12) ** 2) / 2) - 1, abs=1e-6)


def test_a_network_with_clicks_starts_as_the_one_without() -> None:
    torch.manual_seed(1)
    network = build_network(TINY).eval()
    initial = Model("before", network, TINY, {})
    guided = initial_state(GUIDED, "cpu", initial).network.eval()
    windows = torch.randn(1, 2, 16, 16, 16)
    clicks = torch.rand(1, 2, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(guided(torch.cat([windows, clicks], dim=1)), network(windows))


def test_only_organnet_takes_clicks() -> None:
    with pytest.raises(ConfigError, match="only organnet25d takes clicks, not unet"):
        replace(GUIDED, network=NetworkConfig(name="unet"))


@pytest.mark.parametrize(
    "clicks", [{"probability": 1.5}, {"most": 0}, {"radius_mm": 0.0}, {"radius_mm": float("nan")}]
)
def test_bad_settings_of_clicks_are_refused(clicks: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="clicks: "):
        ClickConfig(**clicks)  # type: ignore[arg-type]


def test_recipes_keep_their_plain_form_without_clicks_and_come_back_with_them() -> None:
    assert "clicks" not in TINY.as_dict()
    assert recipe_from_dict(TINY.as_dict(), source="test") == TINY
    assert recipe_from_dict(GUIDED.as_dict(), source="test") == GUIDED
    assert (TINY.in_channels, GUIDED.in_channels) == (2, 4)
