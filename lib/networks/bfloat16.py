"""Convolutions whose gradients can be trusted in bfloat16 on a CPU.

On CPUs with bfloat16 instructions, PyTorch 2.15 with its oneDNN computes some weight gradients of 3D
convolutions from memory that nobody wrote: they differ from one call to the next and are now and then
infinite, without a word. It was seen where the first axis is shorter than the kernel and longer than its
padding (2 voxels under a kernel of 3; 3 or 4 under one of 5), and where the second is 1 under a kernel of 5;
never in float32, nor where every axis is as long as the kernel. On crops of 48 voxels the deepest level of a
V-Net has 3, that of SwinUNETR 2.
"""

import torch
from torch import Tensor, nn


class SafeConv3d(nn.Conv3d):
    """A 3D convolution that trains in float32 on a CPU where an axis is shorter than the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what `nn.Conv3d` does."""
        if _is_doubtful(x, self.kernel_size):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


def guard_gradients(network: nn.Module) -> nn.Module:
    """Return `network` with each of its 3D convolutions made a `SafeConv3d`; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = SafeConv3d
    return network


def _is_doubtful(x: Tensor, kernel: tuple[int, ...]) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and any(size < extent for size, extent in zip(x.shape[2:], kernel, strict=True))
    )
