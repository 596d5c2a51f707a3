"""One run on several processes: each computes a share of every batch, and all keep the same weights.

Each process follows the same plan and makes the views of the whole batch; the models see its share only. In a run of
one process each function of this module returns its input unchanged.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from kdflow.core.errors import UserError

# The other processes may be slow, as when the first one evaluates. torchrun ends all of them when one dies.
PROCESS_GROUP_TIMEOUT = timedelta(days=7)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun has started, with computation on `device`.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    cuda = device.type == "cuda"
    if cuda:
        gpus, processes = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if gpus < processes:
            raise UserError(
                f"params.yaml: compute.processes_per_run: {processes} processes need a GPU each, and there are {gpus}"
            )
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo", timeout=PROCESS_GROUP_TIMEOUT, device_id=device if cuda else None
    )
    yield
    dist.destroy_process_group()  # not after a failure: it might wait for the other processes forever


def world_size() -> int:
    """Return how many processes compute this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; rank 0 writes files and messages."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank_or(alone: int) -> int:
    """Return the number of this process on its machine, to choose its GPU; `alone` in a run of one process."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else alone


def barrier() -> None:
    """Wait until all processes reach this point."""
    if world_size() > 1:
        dist.barrier()


def shard(n: int) -> slice:
    """Return the rows of `n` that this process computes: contiguous, the sizes of two shares differ by at most one."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def all_gather_rows(rows: Shaped[Tensor, "share ..."], n: int) -> Shaped[Tensor, "n ..."]:
    """Return all `n` rows, of which this process has computed its share; without gradients."""
    if world_size() == 1:
        return rows
    gathered: Tensor = rows.new_zeros(n, *rows.shape[1:])
    gathered[shard(n)] = rows.detach()
    dist.all_reduce(gathered)  # other processes' rows are zero: the sum is exact, and shares may differ in size
    return gathered


def all_gather_rows_with_grad(rows: Shaped[Tensor, "share ..."], n: int) -> Shaped[Tensor, "n ..."]:
    """Return all `n` rows; the gradient of this process's share is the sum of the gradients of all processes.

    So a loss of all rows that each process computes has the gradients of one process, after DDP's mean over processes.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = rows.new_zeros(n, *rows.shape[1:])
    gathered[shard(n)] = rows
    return _Sum.apply(gathered)  # type: ignore[no-any-return]


def scale_to_global_mean(loss: Float[Tensor, ""], n: int) -> Float[Tensor, ""]:
    """Scale a mean over this process's share of `n` rows, so that the mean over processes is that over all rows."""
    if world_size() == 1:
        return loss
    local = shard(n)
    weight: float = (local.stop - local.start) * world_size() / n
    return loss * weight


def all_reduce_mean(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the mean of the values of all processes."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


# --- a model ---------------------------------------------------------------------------------------------------


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Wrap a model for training: batch norm over all shares, and gradients averaged over processes in backward.

    The model is changed in place and keeps its parameters and the names of its state. A model without parameters, as
    most losses are, is returned unchanged.

    Raises:
        UserError: it has batch norm of a kind that cannot be synchronised.
    """
    if world_size() == 1 or next(model.parameters(), None) is None:
        return model
    layers = [(parent, name, layer) for parent in model.modules() for name, layer in parent.named_children()]
    norms = [(parent, name, layer) for parent, name, layer in layers if isinstance(layer, _BatchNorm)]
    for _, name, layer in norms:
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or not layer.track_running_stats:
            raise UserError(
                f"params.yaml: compute.processes_per_run: the model's {name} is a {type(layer).__name__}, which cannot "
                "be synchronised over processes; set it to 1"
            )
    if next(model.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    else:
        for parent, name, layer in norms:
            setattr(parent, name, SharedBatchNorm.like(layer))
    with warnings.catch_warnings():  # newer torch names it forward_sync_buffers, which torch 2.9 does not have
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)  # they are equal in all processes


class SharedBatchNorm(_BatchNorm):
    """Batch norm over the rows of all processes, on CPUs; on GPUs torch's SyncBatchNorm does this."""

    @classmethod
    def like(cls, norm: _BatchNorm) -> SharedBatchNorm:
        """Return a layer with the same parameters and buffers as `norm`."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, affine=False)
        shared.affine = norm.affine
        for name, parameter in norm.named_parameters():
            setattr(shared, name, parameter)
        for name, buffer in norm.named_buffers():
            setattr(shared, name, buffer)
        return shared.train(norm.training)

    def forward(self, x: Float[Tensor, "share c ..."]) -> Float[Tensor, "share c ..."]:
        """Normalise by mean and variance over all processes; in eval mode by the running statistics."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        dims, channels = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        rows = x.new_tensor([x.numel() / x.shape[1]])
        sums = _Sum.apply(torch.cat([x.sum(dims), rows]))
        mean, n = sums[:-1] / sums[-1].detach(), sums[-1].detach()
        centred = x - mean.view(channels)
        variance = _Sum.apply(centred.square().sum(dims)) / n
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), momentum)  # unbiased, as in torch
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalised: Tensor = centred * scale.view(channels)
        return normalised + self.bias.view(channels) if self.affine else normalised

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        """Accept any number of dimensions."""


class _Sum(torch.autograd.Function):
    """Sum over all processes. Each of them uses the sum, so the gradient is the sum of their gradients."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
