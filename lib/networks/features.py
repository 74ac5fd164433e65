"""Features of a network: the mean activation of its layer with the most channels."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from lib.imaging.quantities import FloatArray

ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish)


class PooledFeatures:
    """Mean over space, and over all inputs so far, of the activation with the most channels.

    In a U-shaped network, such as OrganNet2.5D and its peers, this is the end of the encoder. Of several
    activations with equally many channels, the first one to run is taken.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, output: Tensor) -> None:
        """Add one activation, `(B, C, X, Y, Z)`."""
        pooled = output.detach().float().mean(dim=(2, 3, 4)).sum(dim=0).cpu()
        self._sums[name] = self._sums[name] + pooled if name in self._sums else pooled
        self._counts[name] = self._counts.get(name, 0) + len(output)

    def mean(self) -> FloatArray:
        """Return `(C,)`, float32; empty if the network has no activation layer."""
        if not self._sums:
            return np.zeros(0, np.float32)
        name = max(self._sums, key=lambda n: len(self._sums[n]))
        return np.asarray((self._sums[name] / self._counts[name]).numpy(), np.float32)


@contextmanager
def pooled_features(network: nn.Module) -> Iterator[PooledFeatures]:
    """Yield a `PooledFeatures` that collects the features of each input of `network` in this context."""
    features = PooledFeatures()
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, ACTIVATIONS):

            def hook(_module: nn.Module, _input: object, output: Tensor, name: str = name) -> None:
                if output.dim() == 5:
                    features.add(name, output)

            hooks.append(module.register_forward_hook(hook))
    try:
        yield features
    finally:
        for handle in hooks:
            handle.remove()
