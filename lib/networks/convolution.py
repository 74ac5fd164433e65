"""3D convolutions that train correctly and fast on a processor."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ONE = (1, 1, 1)


class TrainableConv3d(nn.Conv3d):
    """A 3D convolution with correct and fast gradients on a CPU; its result is that of `nn.Conv3d`.

    **Correct.** On CPUs with bfloat16 instructions, PyTorch 2.15 with its oneDNN computes some weight gradients
    of 3D convolutions from uninitialised memory: they differ between calls and are sometimes infinite, without
    an error. This occurs if the first axis is shorter than the kernel and longer than its padding (2 voxels
    with a kernel of 3; 3 or 4 with a kernel of 5), and if the second is 1 with a kernel of 5; never in float32,
    nor if every axis is as long as the kernel. On crops of 48 voxels the deepest level of a V-Net has 3
    voxels, and that of SwinUNETR has 2. Such a convolution trains in float32.

    **Fast.** Weight gradients of dilated convolutions take two to four times as long as those of dense ones:
    they are computed by `dilated_weight_gradient`. Gradients of a bias take longer than those of the weights:
    they are computed by a plain sum.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the same as `nn.Conv3d`."""
        if not _trains_on_cpu(x):
            return super().forward(x)
        if _is_unsafe(x, self.kernel_size):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        is_dilated = self._is_dilated()
        if (self.bias is None and not is_dilated) or self.padding_mode != "zeros" or x.dim() != 5:
            return super().forward(x)
        geometry = _Geometry(
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            has_fast_weights=is_dilated,
        )
        return _convolve(x, self.weight, self.bias, geometry)

    def _is_dilated(self) -> bool:
        """Return whether `dilated_weight_gradient` applies: a dilation on every axis, and the size is kept."""
        kept = tuple(
            rate * (extent // 2)
            for rate, extent in zip(self.dilation, self.kernel_size, strict=True)
        )
        return (
            min(self.dilation) > 1
            and self.groups == 1
            and self.stride == _ONE
            and self.padding == kept
            and all(extent % 2 for extent in self.kernel_size)
        )


class TrainableConvTranspose3d(nn.ConvTranspose3d):
    """A transposed 3D convolution with fast gradients on a CPU, as `TrainableConv3d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the same as `nn.ConvTranspose3d`."""
        if (
            not _trains_on_cpu(x)
            or output_size is not None
            or self.bias is None
            or not isinstance(self.padding, tuple)
            or x.dim() != 5
        ):
            return super().forward(x, output_size)
        geometry = _Geometry(
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            is_transposed=True,
            output_padding=self.output_padding,
        )
        return _convolve(x, self.weight, self.bias, geometry)


def with_trainable_convolutions(network: nn.Module) -> nn.Module:
    """Return `network` with each 3D convolution turned into a trainable one; weights and names are kept."""
    kinds: dict[type, type] = {
        nn.Conv3d: TrainableConv3d,
        nn.ConvTranspose3d: TrainableConvTranspose3d,
    }
    for module in network.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]
    return network


def _trains_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled()


def _is_unsafe(x: Tensor, kernel: tuple[int, ...]) -> bool:
    return torch.is_autocast_enabled("cpu") and any(
        size < extent for size, extent in zip(x.shape[2:], kernel, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Geometry:
    """Arguments of a convolution besides its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    is_transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0, 0)
    has_fast_weights: bool = False
    """Whether `dilated_weight_gradient` applies."""

    def arguments(self) -> tuple[Any, ...]:
        """Return the last arguments of PyTorch's convolution."""
        return (self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding,
                self.groups)  # fmt: skip


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    """Return the convolution, in the precision of the present autocast."""
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    result: Tensor = _Convolution.apply(x, weight, bias, geometry)
    return result


class _Convolution(torch.autograd.Function):
    """A convolution whose gradients are computed as `TrainableConv3d` describes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        result: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry.arguments())
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        geometry: _Geometry = ctx.geometry
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        is_fast = geometry.has_fast_weights
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *geometry.arguments(),
            (needs_x, needs_weight and not is_fast, False),
        )  # fmt: skip
        if is_fast and needs_weight:
            of_weight = dilated_weight_gradient(x, grad, weight.shape[2:], geometry.dilation)
        of_bias = grad.sum((0, 2, 3, 4)) if needs_bias else None
        return of_x, of_weight, of_bias, None


def dilated_weight_gradient(
    x: Tensor, grad: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """Return the weight gradient `(O, I, *kernel)` of a dilated convolution that keeps the size.

    A convolution with dilation `d` is a dense convolution on each of the `d**3` lattices of every `d`-th voxel
    (Yu and Koltun, ICLR 2016). So the gradient is the dense one, with the lattices as a batch. If lattices are
    short, they are mostly padding: then, in bfloat16, each entry of the kernel is one matrix product over the
    voxels that it pairs. Which of both is used depends on sizes only, so that a run can be repeated.

    Args:
        x: `(B, I, X, Y, Z)`, input of the convolution.
        grad: `(B, O, X, Y, Z)`, gradient of its result.
        kernel: Odd sides of the kernel.
        dilation: Dilation along each axis.
    """
    sides = x.shape[2:]
    shortest = min(size // rate for size, rate in zip(sides, dilation, strict=True))
    if x.dtype == torch.bfloat16 and shortest < 2 * max(kernel) - 1:
        return _by_products(x, grad, kernel, dilation)
    lattices = _lattices(x, dilation)
    weight = x.new_empty((grad.shape[1], x.shape[1], *kernel))
    padding = [extent // 2 for extent in kernel]
    result: Tensor = torch.ops.aten.convolution_backward(
        _lattices(grad, dilation), lattices, weight.to(memory_format=torch.channels_last_3d), None, _ONE,
        padding, _ONE, False, (0, 0, 0), 1, (False, True, False),  # noqa: FBT003 - torch's signature
    )[1]  # fmt: skip
    return result


def _lattices(volume: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """Return `(B d d d, C, X/d, Y/d, Z/d)`: the lattices of every `d`-th voxel, padded with zeros."""
    a, b, c = dilation
    rows = volume.permute(0, 2, 3, 4, 1)
    pad_x, pad_y, pad_z = (
        -size % rate for size, rate in zip(rows.shape[1:4], dilation, strict=True)
    )
    if pad_x or pad_y or pad_z:
        rows = functional.pad(rows, (0, 0, 0, pad_z, 0, pad_y, 0, pad_x))
    batch, x, y, z, channels = rows.shape
    rows = rows.reshape(batch, x // a, a, y // b, b, z // c, c, channels)
    rows = rows.permute(0, 2, 4, 6, 1, 3, 5, 7)
    return rows.reshape(-1, x // a, y // b, z // c, channels).permute(0, 4, 1, 2, 3)


def _by_products(
    x: Tensor, grad: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    result = x.new_zeros((*kernel, grad.shape[1], x.shape[1]))
    x, grad = x.permute(0, 2, 3, 4, 1), grad.permute(0, 2, 3, 4, 1)
    for entry in product(*(range(extent) for extent in kernel)):
        offsets = [
            rate * (number - extent // 2)
            for number, extent, rate in zip(entry, kernel, dilation, strict=True)
        ]
        into, out_of = zip(*_overlaps(x.shape[1:4], offsets), strict=True)
        left = grad[(slice(None), *into)].reshape(-1, grad.shape[-1])
        right = x[(slice(None), *out_of)].reshape(-1, x.shape[-1])
        if len(left):
            torch.mm(left.t(), right, out=result[entry])
    return result.permute(3, 4, 0, 1, 2)


def _overlaps(sides: tuple[int, ...], offsets: list[int]) -> Iterator[tuple[slice, slice]]:
    """Yield, for each axis, the voxels whose neighbour at the offset exists, and these neighbours."""
    for size, offset in zip(sides, offsets, strict=True):
        first, last = max(0, -offset), max(0, min(size, size - offset), -offset)
        yield slice(first, last), slice(first + offset, last + offset)
