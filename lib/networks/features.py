"""What a network made of its input half-way: the mean activation of its richest layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from lib.imaging.quantities import FloatArray

ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish)


class PooledFeatures:
    """The mean over space, and over all inputs so far, of the activation with the most channels.

    That is the bottom of a U: the end of the encoder, in OrganNet2.5D and in its peers. Of several with as
    many channels it is the one that ran first.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, output: Tensor) -> None:
        """Take in one activation, `(B, C, X, Y, Z)`."""
        pooled = output.detach().float().mean(dim=(2, 3, 4)).sum(dim=0).cpu()
        self._sums[name] = self._sums[name] + pooled if name in self._sums else pooled
        self._counts[name] = self._counts.get(name, 0) + len(output)

    def mean(self) -> FloatArray:
        """Return `(C,)`, float32; empty where the network has no activation layer."""
        if not self._sums:
            return np.zeros(0, np.float32)
        name = max(self._sums, key=lambda n: len(self._sums[n]))
        return np.asarray((self._sums[name] / self._counts[name]).numpy(), np.float32)


@contextmanager
def pooled_features(network: nn.Module) -> Iterator[PooledFeatures]:
    """Yield what gathers the features of every input that `network` sees while this lasts."""
    gathered = PooledFeatures()
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, ACTIVATIONS):

            def hook(_module: nn.Module, _input: object, output: Tensor, name: str = name) -> None:
                if output.dim() == 5:
                    gathered.add(name, output)

            hooks.append(module.register_forward_hook(hook))
    try:
        yield gathered
    finally:
        for one in hooks:
            one.remove()
