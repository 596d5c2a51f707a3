"""Models: `forward(x)` returns logits, and nothing else.

Each module of `families` builds the models of one family: `build(num_classes, image_size, **options) -> nn.Module`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kdflow.config import Model
from kdflow.config.user_code import load_part
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.core.machine import total_memory
from kdflow.models import safe_weights


def create_model(name: str, recipe: Model, num_classes: int, image_size: int) -> nn.Module:
    """Create the model `name` of recipes/models.yaml with initial weights from torch's global generator.

    Raises:
        UserError: the family does not have an option, or does not accept its value; or it is a user's code and cannot
            be imported or makes no module.
    """
    family: Any = load_part("models", recipe.family, f"recipes/models.yaml: {name}.family")
    family = family or importlib.import_module(f"kdflow.models.families.{recipe.family}")
    for option in ("num_classes", "image_size"):
        if option in recipe.options:
            raise UserError(f"model {name}: options (recipes/models.yaml): {option} is set by the dataset")
    try:
        model: Any = family.build(num_classes, image_size, **recipe.options)
    except Exception as error:  # Wrong options raise exceptions of many types, as for a layer too large for the memory.
        reason = one_line(error) or type(error).__name__
        raise UserError(f"model {name}: options (recipes/models.yaml): {reason}") from None
    if not isinstance(model, nn.Module):
        found = type(model).__name__
        raise UserError(
            f"recipes/models.yaml: {name}.family: {recipe.family}: returns {found}, expected torch.nn.Module"
        )
    return model


def create_model_on_meta(name: str, recipe: Model, num_classes: int, image_size: int) -> nn.Module:
    """Create a model as `create_model` does, on the meta device: shapes without values or memory.

    Raises:
        UserError: as in `create_model`, or the model is larger than the memory of this machine.
    """
    with torch.random.fork_rng(devices=[]):
        with _WeightsOnMeta():
            model = create_model(name, recipe, num_classes, image_size)
        model = model.to("meta")
    size, memory = sum(parameter.nbytes for parameter in model.parameters()), total_memory()
    if size > memory:
        raise UserError(f"model {name}: its weights have {size / 1e9:,.0f} GB, the memory {memory / 1e9:,.0f} GB")
    return model


_FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)  # called by torch.nn.init


def _is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta


class _WeightsOnMeta(TorchFunctionMode):
    """The mode in which weights, which layers allocate with `torch.empty`, are on the meta device.

    Other tensors stay on the CPU, because some constructors compute with their values, as RegNet's does. A constructor
    may call its layers with them; then the computation is on the meta device.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif func in _FILLS and _is_meta(args[0]):
            return args[0]  # there are no values to fill in, and torch imports its compiler for the first of these
        elif any(map(_is_meta, tree_leaves((args, kwargs)))):
            args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
        return func(*args, **kwargs)


def init_convolutions(model: nn.Module) -> None:
    """Initialise all convolutions with He et al.'s (2015) normal distribution, mode fan_out, and zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


M = TypeVar("M", bound=nn.Module)


def to_device(model: M, device: torch.device) -> M:
    """Move a model to a device, in the channels-last memory format, the fastest one for convolutions."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def save_weights(model: nn.Module, path: Path) -> str:
    """Write the model's state dict as safetensors; returns the SHA-256 of the file in hex."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    files.write_bytes(path, safetensors.torch.save(state))
    return files.sha256(path)


def load_exact(model: nn.Module, path: Path, sha256: str | None = None) -> str:
    """Load a state dict whose names and shapes are exactly the model's, from safetensors or torch.save.

    No code of the file is run. Use `convert_weights.load_any_format` for checkpoints of other projects.

    Args:
        sha256: the expected SHA-256 of the file in hex; None does not check.

    Returns:
        The SHA-256 of the file in hex.

    Raises:
        UserError: the file is missing, has another hash, cannot be read, or is of another architecture.
    """
    safe_weights.check_is_file(path)
    actual = files.sha256(path)
    if sha256 is not None and actual != sha256:
        raise UserError(f"{path}: sha256 is {actual}, expected {sha256}")
    state = safe_weights.read(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    state = {key: safe_weights.dense_tensor(path, key, value) for key, value in dict.items(state)}
    difference = safe_weights.compare_states(state, model.state_dict())
    if difference:
        raise UserError(f"{path}: weights of another architecture: {difference}")
    model.load_state_dict(state)
    return actual
