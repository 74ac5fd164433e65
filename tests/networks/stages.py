"""Shapes of the volumes that flow through the stages of a network."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def stage_shapes(
    network: nn.Module, names: Iterable[str], image: torch.Tensor
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return each stage's output shape `(C, X, Y, Z)` and its number of input channels, by name."""
    outputs: dict[str, tuple[int, ...]] = {}
    channels: dict[str, int] = {}
    for name in names:

        def hook(_: nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
            outputs[name] = tuple(output.shape[1:])
            channels[name] = inputs[0].shape[1]

        getattr(network, name).register_forward_hook(hook)
    with torch.inference_mode():
        network(image)
    return outputs, channels
