"""Faster passes of lower precision: TF32, bfloat16, folded batch norm and compilation. All are off by default."""

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
    """Allow or forbid TF32 in CUDA's matrix products and convolutions. torch allows it in convolutions by default."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def fold_batch_norm(name: str, model: nn.Module, image_size: int) -> nn.Module:
    """Return a copy of a model in eval mode with each batch norm folded into the convolution before it.

    One pass over noise finds the pairs, another one compares the logits of the copy with the model's.

    Raises:
        UserError: the logits differ by more than 0.1 %.
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
    """Map the name of each batch norm to that of the convolution whose unchanged output is its input."""
    outputs: dict[int, tuple[str, Tensor, int]] = {}  # by id; the tensor is kept, so that no other one gets its id
    pairs: dict[str, str] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[id(output)] = (name, output, output._version)

        return hook

    def pair(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            convolution, output, version = outputs.get(id(inputs[0]), ("", None, 0))
            if output is not None and output._version == version:
                pairs[name] = convolution

        return hook

    hooks = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    hooks += [m.register_forward_pre_hook(pair(name)) for name, m in norms]
    model(x)
    for handle in hooks:
        handle.remove()
    return pairs


def make_forward(model: nn.Module, dtype: str, compiling: str) -> Forward:
    """Return a function from images to float32 logits, which computes in `dtype` and may be compiled."""
    forward: Forward = model if compiling == "none" else torch.compile(model, mode=compiling)
    if dtype == "float32":
        return forward

    def autocast(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, getattr(torch, dtype)):
            return forward(x).float()

    return autocast


def check_supported(precision: Precision, with_features: bool) -> None:
    """Refuse a folded or compiled model, or one in onnxruntime, if features are needed: it does not call their hooks.

    Raises:
        UserError: `with_features` is set, and the precision folds or compiles, or runs the teacher in onnxruntime.
    """
    if not with_features:
        return
    for field, enabled in (
        ("fold_teacher", precision.fold_teacher),
        ("compile", precision.compile != "none"),
        ("teacher_runtime", precision.teacher_runtime != "torch"),
    ):
        if enabled:
            raise UserError(f"params.yaml: precision.{field}: not possible with a loss on features")
