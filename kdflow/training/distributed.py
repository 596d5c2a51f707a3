"""One run by several processes: each takes its share of a batch's rows, and all end up with the same weights.

Every process follows the same plan and makes the views of the whole batch. What differs is whom it asks: the models
see its share only. In a process on its own each function here is the identity.
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

# Who waits for another process that trains the same run may wait long. torchrun sees to processes that die.
PROCESS_GROUP_TIMEOUT = timedelta(days=7)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Be one of the processes that torchrun has started, on `device`.

    Raises:
        UserError: there are fewer cards than processes.
    """
    cuda = device.type == "cuda"
    if cuda:
        cards, wanted = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
        if cards < wanted:
            raise UserError(
                f"params.yaml: compute.processes_per_run: {wanted} asked for, one a card, and there are {cards} cards"
            )
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo", timeout=PROCESS_GROUP_TIMEOUT, device_id=device if cuda else None
    )
    yield
    dist.destroy_process_group()  # after a failure the process ends: to wait for the others could take forever


def world_size() -> int:
    """How many train this run together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first, 0, is the one that writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank_or(alone: int) -> int:
    """Which of those on its machine this is, for the choice of its card; `alone` if it trains its run alone."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else alone


def barrier() -> None:
    """Go on when all have come here."""
    if world_size() > 1:
        dist.barrier()


def shard(n: int) -> slice:
    """This process's rows of `n`: all of them are dealt out, in order, to each as many as to any other or one less."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def all_gather_rows(mine: Shaped[Tensor, "share ..."], n: int) -> Shaped[Tensor, "n ..."]:
    """All `n` rows, of which this process has computed its share; no gradient passes."""
    if world_size() == 1:
        return mine
    rows: Tensor = mine.new_zeros(
        n, *mine.shape[1:]
    )  # others' rows are zero here: the sum is exact, shares may be uneven
    rows[shard(n)] = mine.detach()
    dist.all_reduce(rows)
    return rows


def scale_to_global_mean(loss: Float[Tensor, ""], n: int) -> Float[Tensor, ""]:
    """From the mean over this process's share of `n` rows: what, averaged over processes, is the mean over all rows."""
    if world_size() == 1:
        return loss
    mine = shard(n)
    weight: float = (mine.stop - mine.start) * world_size() / n
    return loss * weight


def all_reduce_mean(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean of every process's number."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


# --- a model ---------------------------------------------------------------------------------------------------


def wrap_ddp(model: nn.Module) -> nn.Module:
    """`model` with batch norm over all shares, and gradients that are averaged while they are computed.

    The model itself is changed in place and keeps its parameters and the names of its state.

    Raises:
        UserError: it has batch norm of a kind that cannot be made to see all shares.
    """
    if world_size() == 1:
        return model
    layers = [(parent, name, layer) for parent in model.modules() for name, layer in parent.named_children()]
    norms = [(parent, name, layer) for parent, name, layer in layers if isinstance(layer, _BatchNorm)]
    for _, name, layer in norms:
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or not layer.track_running_stats:
            raise UserError(
                f"params.yaml: compute.processes_per_run: the model's {name} is a {type(layer).__name__}, which sees only its "
                "own process's images; take 1"
            )
    if next(model.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    else:
        for parent, name, layer in norms:
            setattr(parent, name, SharedBatchNorm.like(layer))
    with warnings.catch_warnings():  # newer torch calls it forward_sync_buffers, which torch 2.9 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)  # they are the same everywhere


class SharedBatchNorm(_BatchNorm):
    """Batch norm of the rows of all processes: what torch's SyncBatchNorm is on a GPU, for CPUs."""

    @classmethod
    def like(cls, norm: _BatchNorm) -> SharedBatchNorm:
        """With the very parameters and buffers of `norm`."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, affine=False)
        shared.affine = norm.affine
        for name, parameter in norm.named_parameters():
            setattr(shared, name, parameter)
        for name, buffer in norm.named_buffers():
            setattr(shared, name, buffer)
        return shared.train(norm.training)

    def forward(self, x: Float[Tensor, "share c ..."]) -> Float[Tensor, "share c ..."]:
        """Normalise by mean and variance over all processes; in eval mode by the running ones, as ever."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        over, channels = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        rows = x.new_tensor([x.numel() / x.shape[1]])
        sums = _Sum.apply(torch.cat([x.sum(over), rows]))
        mean, n = sums[:-1] / sums[-1].detach(), sums[-1].detach()
        centred = x - mean.view(channels)
        variance = _Sum.apply(centred.square().sum(over)) / n
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), momentum)  # unbiased, as torch keeps it
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        found: Tensor = centred * scale.view(channels)
        return found + self.bias.view(channels) if self.affine else found

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        """Any number of dimensions."""


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, since each of them goes on with the sum."""

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
