"""What makes a pass faster at the cost of digits: settings, off by default, and part of every record."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdflow.config import Precision
from kdflow.core.errors import UserError

Forward = Callable[[Tensor], Tensor]


def use_tf32(allowed: bool) -> None:
    """Whether CUDA may round float32 factors to TF32. torch's own default allows it for convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def fold_batch_norm(name: str, model: nn.Module, image_size: int) -> nn.Module:
    """A copy of a model in eval mode, its batch norm folded into the convolution just before it.

    Which follows which is seen in one pass over noise; another pass shows that the copy says the same.

    Raises:
        UserError: it does not.
    """
    copied: Any = copy.deepcopy(model)
    x = torch.rand(2, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.no_grad():
        for norm, convolution in _pairs(copied, x).items():
            fused = fuse_conv_bn_eval(copied.get_submodule(convolution), copied.get_submodule(norm))
            copied.set_submodule(convolution, fused)
            copied.set_submodule(norm, nn.Identity())
        difference, scale = (copied(x) - model(x)).abs().max().item(), model(x).abs().max().item()
    if not difference <= 1e-3 * scale:
        raise UserError(
            f"params.yaml: precision.fold_teacher: {name} cannot be folded: its logits change by {difference:g}"
        )
    return copied.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _pairs(model: nn.Module, x: Tensor) -> dict[str, str]:
    """The names of each batch norm, and of the convolution whose untouched output it takes."""
    made: dict[int, tuple[str, Tensor, int]] = {}
    found: dict[str, str] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            made[id(output)] = (name, output, output._version)

        return hook

    def pair(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            convolution, output, version = made.get(id(inputs[0]), ("", None, 0))
            if output is not None and output._version == version:
                found[name] = convolution

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    hooks += [m.register_forward_pre_hook(pair(name)) for name, m in norms]
    model(x)
    for handle in hooks:
        handle.remove()
    return found


def make_forward(model: nn.Module, dtype: str, compiling: str) -> Forward:
    """How a model's logits are asked for: float32 whatever the model computes in."""
    forward: Forward = model if compiling == "none" else torch.compile(model, mode=compiling)
    if dtype == "float32":
        return forward

    def rounded(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, getattr(torch, dtype)):
            return forward(x).float()

    return rounded


def check_supported(precision: Precision, with_features: bool) -> None:
    """Features are seen by hooks, which neither a folded nor a compiled model calls.

    Raises:
        UserError: they are needed, and the precision rules them out.
    """
    if not with_features:
        return
    for field, asked in (("fold_teacher", precision.fold_teacher), ("compile", precision.compile != "none")):
        if asked:
            raise UserError(f"params.yaml: precision.{field}: not for a loss on features; set it back, or leave it out")
