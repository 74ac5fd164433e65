"""Several processes that train one network together, as `torchrun` starts them.

Each takes an equal share of every batch. What a batch decides as a whole, the statistics of batch
normalisation (Ioffe and Szegedy 2015) and the soft Dice of the loss, is summed over the processes: their
gradient is the one that a single process computes from the whole batch, up to rounding. The weights after many
steps differ by more than that, since Adam divides by the size of the gradient and so enlarges what rounding
left of those near zero. Dropout is drawn by each process for itself.
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

PATIENCE = timedelta(hours=12)
"""How long a process waits for another: the first one prepares cases and validates while the others wait."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a run, seen from one of them; one process alone by default.

    Attributes:
        rank: Which this is, from 0; the first one writes, reports and validates.
        size: How many there are.
        device: Where this one's tensors are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def share_of(self, batch_size: int) -> int:
        """Return how many of a batch's crops each process takes.

        Raises:
            ConfigError: If they cannot be shared equally.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"schedule.batch_size {batch_size} cannot be shared equally by {self.size} processes; "
                f"take a multiple of {self.size}, or another --nproc-per-node"
            )
        return batch_size // self.size

    def wait(self) -> None:
        """Return when every process has come here."""
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
        """Return the first process's value, which every process gets."""
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
        """Return `network` with every batch normalisation made one over all processes; alone, as it is.

        The names of its parameters and buffers stay.
        """
        if self.size == 1:
            return network
        if isinstance(network, _BatchNorm):
            return PooledBatchNorm.like(network, self)
        for name, child in network.named_children():
            setattr(network, name, self.with_pooled_statistics(child))
        return network

    def wrapped(self, network: nn.Module) -> nn.Module:
        """Return what to call in a training step: `network`, with its gradients averaged over the processes."""
        if self.size == 1:
            return network
        ids = [torch.device(self.device).index] if self.device.startswith("cuda") else None
        # The statistics are the same everywhere, so there is no buffer to broadcast.
        return DistributedDataParallel(network, device_ids=ids, forward_sync_buffers=False)


SINGLE_PROCESS = ProcessGroup()


def current_group(device: str) -> ProcessGroup:
    """Return the processes that this one joined (see `joined`), or this one alone, on `device`."""
    if not distributed.is_initialized():
        return ProcessGroup(device=device)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), device)


def is_distributed() -> bool:
    """Return whether `torchrun` started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join_processes(device: str) -> Iterator[ProcessGroup]:
    """Yield the processes that `torchrun` started, this one among them; without it, this one alone.

    With `cuda` each process takes the GPU of its number on the machine and speaks by nccl; on a CPU by gloo. A
    process that fails does not take leave of the others: `torchrun` ends them.

    Raises:
        ConfigError: If there are more processes than GPUs, or `device` is one certain GPU.
    """
    if not is_distributed():
        yield ProcessGroup(device=device)
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        device = f"cuda:{_own_gpu(device)}"
        torch.cuda.set_device(device)
    # Said of 1 x 1 x 1 convolutions, whose layout in memory has two names.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    distributed.init_process_group("nccl" if is_cuda else "gloo", timeout=PATIENCE)
    yield current_group(device)
    distributed.destroy_process_group()


def _own_gpu(device: str) -> int:
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.device(device).index is not None:
        raise ConfigError(f"--device {device}: under torchrun each process takes its own; say cuda")
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"process {number + 1} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    return number


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is the sum of the processes' gradients.

    `DistributedDataParallel` then divides by their number: of a loss that is the same on each process, what is
    left is its gradient.
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
    """Batch normalisation whose mean and variance are those of the whole batch, over all processes.

    As `torch.nn.SyncBatchNorm`, which is for GPUs only. Its sums are pairwise; those of torch on a CPU are not
    where channels lie last, and their mean of an input near -1 is off by up to 4e-4.
    """

    group: ProcessGroup = SINGLE_PROCESS

    @classmethod
    def like(cls, norm: _BatchNorm, group: ProcessGroup) -> "PooledBatchNorm":
        """Return one with the parameters, buffers and settings of `norm`."""
        made = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        made.load_state_dict(norm.state_dict())
        made.group = group
        return made

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
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as `torch.nn.BatchNorm3d` does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
