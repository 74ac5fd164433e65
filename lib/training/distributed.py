"""Data-parallel training by several processes, started by `torchrun`.

Each process takes an equal share of every batch. Values that depend on the whole batch, which are the
statistics of batch normalisation (Ioffe and Szegedy 2015) and the soft Dice of the loss, are summed over the
processes. So the gradient equals that of a single process on the whole batch, up to rounding. After many steps
the weights differ by more than rounding: Adam divides by the size of the gradient, which enlarges rounding
errors of gradients near zero. Each process draws its own dropout.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lib.errors import ConfigError

TIMEOUT = timedelta(hours=12)
"""Longest wait of a process for another: the first prepares cases and validates while the others wait."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a run, as seen by one of them; by default a single process.

    Attributes:
        rank: Number of this process, from 0; process 0 writes, reports and validates.
        size: Number of processes.
        device: Device of this process, whose tensors are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, reports and validates."""
        return self.rank == 0

    def share_of(self, batch_size: int) -> int:
        """Return the number of crops of a batch that each process takes.

        Raises:
            ConfigError: If the batch cannot be divided equally.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"schedule.batch_size {batch_size} cannot be divided equally by {self.size} processes; "
                f"use a multiple of {self.size}, or another --nproc-per-node"
            )
        return batch_size // self.size

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            distributed.barrier()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the processes."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return [float(value) for value in summed]

    def from_first(self, value: _Value) -> _Value:
        """Return the value of the first process, in every process."""
        if self.size == 1:
            return value
        shared = [value]
        distributed.broadcast_object_list(shared, src=0)
        return shared[0]

    def pool(self, tensor: Tensor) -> Tensor:
        """Return `tensor` summed over the processes; a gradient flows back to all of them."""
        if self.size == 1:
            return tensor
        summed: Tensor = _Sum.apply(tensor)
        return summed

    def with_pooled_statistics(self, network: nn.Module) -> nn.Module:
        """Return `network` with each batch normalisation replaced by a `PooledBatchNorm`.

        A single process gets `network` unchanged. Names of parameters and buffers stay the same.
        """
        if self.size == 1:
            return network
        if isinstance(network, _BatchNorm):
            return PooledBatchNorm.like(network, self)
        for name, child in network.named_children():
            setattr(network, name, self.with_pooled_statistics(child))
        return network

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return the module for training steps: `network`, with gradients averaged over the processes."""
        if self.size == 1:
            return network
        ids = [torch.device(self.device).index] if self.device.startswith("cuda") else None
        # The statistics are equal in all processes, so no buffer has to be broadcast.
        return DistributedDataParallel(network, device_ids=ids, forward_sync_buffers=False)


SINGLE_PROCESS = ProcessGroup()


def current_group(device: str) -> ProcessGroup:
    """Return the process group that this process joined (`join_processes`), or a single process on `device`."""
    if not distributed.is_initialized():
        return ProcessGroup(device=device)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), device)


def is_distributed() -> bool:
    """Return whether `torchrun` started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join_processes(device: str) -> Iterator[ProcessGroup]:
    """Yield the process group that `torchrun` started; without `torchrun`, a single process.

    With `cuda` each process uses the GPU of its local rank and the backend nccl; on a CPU the backend is gloo.
    If a process fails, the group is not destroyed here: `torchrun` ends the other processes.

    Raises:
        ConfigError: If there are more processes than GPUs, or `device` names one GPU.
    """
    if not is_distributed():
        yield ProcessGroup(device=device)
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        device = f"cuda:{_own_gpu(device)}"
        torch.cuda.set_device(device)
    # This warning appears for 1 x 1 x 1 convolutions, whose two memory layouts are identical.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    distributed.init_process_group("nccl" if is_cuda else "gloo", timeout=TIMEOUT)
    yield current_group(device)
    distributed.destroy_process_group()


def _own_gpu(device: str) -> int:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.device(device).index is not None:
        raise ConfigError(
            f"--device {device}: under torchrun each process takes its own GPU; give --device cuda"
        )
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"process {number + 1} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    return number


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is the sum of the processes' gradients.

    `DistributedDataParallel` then divides by their number. For a loss that is equal in each process, the result
    is its gradient.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ARG004 - torch passes it
        summed = tensor.detach().clone().contiguous()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradient.clone().contiguous()
        distributed.all_reduce(summed)
        return summed


class PooledBatchNorm(_BatchNorm):
    """Batch normalisation with the mean and variance of the whole batch, over all processes.

    Like `torch.nn.SyncBatchNorm`, which works on GPUs only. Its sums are pairwise; on a CPU those of torch
    are not, for channels-last memory, and the mean of an input near -1 is wrong by up to 4e-4.
    """

    group: ProcessGroup = SINGLE_PROCESS

    @classmethod
    def like(cls, norm: _BatchNorm, group: ProcessGroup) -> "PooledBatchNorm":
        """Return a layer with the parameters, buffers and settings of `norm`."""
        layer = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        layer.load_state_dict(norm.state_dict())
        layer.group = group
        return layer

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {input.dim()} dimensions")

    def forward(self, x: Tensor) -> Tensor:
        """Return `(B, C, ...)` of the same shape and type, each channel normalised."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * self.group.size
        full = x.float()
        mean = self.group.pool(full.sum(axes)) / count
        centred = full - mean.view(shape)
        variance = self.group.pool(centred.square().sum(axes)) / count
        self._update_statistics(mean.detach(), variance.detach() * count / max(1, count - 1))
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as `torch.nn.BatchNorm3d` does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
