"""What makes a pass faster at the cost of digits: settings, off by default, and part of every record."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from kdflow.config import Precision
from kdflow.errors import UserError, one_line

Forward = Callable[[Tensor], Tensor]


def use_tf32(allowed: bool) -> None:
    """Whether CUDA may round float32 factors to TF32. torch's own default allows it for convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def folded(name: str, model: nn.Module) -> nn.Module:
    """A copy of a model in eval mode, its batch norm folded into the convolutions before it; features are lost.

    Raises:
        UserError: the model cannot be traced.
    """
    try:
        return fuse(model).to(memory_format=torch.channels_last)
    except Exception as error:  # a library's model fails in any way it likes
        raise UserError(f"params.yaml: precision.fold_teacher: {name} cannot be folded: {one_line(error)}") from None


def forward_of(model: nn.Module, dtype: str, compiling: str) -> Forward:
    """How a model's logits are asked for: float32 whatever the model computes in."""
    forward: Forward = model if compiling == "none" else torch.compile(model, mode=compiling)
    if dtype == "float32":
        return forward

    def rounded(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, getattr(torch, dtype)):
            return forward(x).float()

    return rounded


def check(precision: Precision, with_features: bool) -> None:
    """Features are seen by hooks, which neither a folded nor a compiled model calls.

    Raises:
        UserError: they are needed, and the precision rules them out.
    """
    if not with_features:
        return
    for field, asked in (("fold_teacher", precision.fold_teacher), ("compile", precision.compile != "none")):
        if asked:
            raise UserError(f"params.yaml: precision.{field}: not for a loss on features; set it back, or leave it out")
