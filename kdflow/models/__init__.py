"""Models: `forward(x)` returns logits, and nothing else.

Every other module of this package is a family: `build(num_classes, image_size, **options) -> nn.Module`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from kdflow.config import Model
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.models import safe_weights


def create_model(name: str, recipe: Model, num_classes: int, image_size: int) -> nn.Module:
    """The model `name` of recipes/models.yaml with fresh weights from torch's global generator.

    Raises:
        UserError: the family does not know an option, or not this value of it.
    """
    family: Any = importlib.import_module(f"kdflow.models.families.{recipe.family}")
    for option in ("num_classes", "image_size"):
        if option in recipe.options:
            raise UserError(
                f"model {name}: its options (recipes/models.yaml): {option} is no option: it is the dataset's"
            )
    try:
        model: nn.Module = family.build(num_classes, image_size, **recipe.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name}: its options (recipes/models.yaml): {one_line(error)}") from None
    return model


def init_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. (2015) do, from their outputs; biases start at zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def save_weights(model: nn.Module, path: Path) -> str:
    """Write the model's state as safetensors, contiguous, on the CPU; returns the file's SHA-256 in hex."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    files.write_bytes(path, safetensors.torch.save(state))
    return files.sha256(path)


def load_exact(model: nn.Module, path: Path, sha256: str | None = None) -> str:
    """Load safetensors or a torch state dict into `model`, which must fit exactly; no code is ever run.

    Weights in other forms than ours: `kdflow.foreign`.

    Args:
        sha256: what the file's hash must be, in hex; None does not check.

    Returns:
        The file's SHA-256 in hex.

    Raises:
        UserError: the file is missing, has another hash, cannot be read, or is of another architecture.
    """
    safe_weights.check_is_file(path)
    found = files.sha256(path)
    if sha256 is not None and found != sha256:
        raise UserError(f"{path}: sha256 is {found}, expected {sha256}")
    state = safe_weights.read(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    state = {key: safe_weights.dense_tensor(path, key, value) for key, value in dict.items(state)}
    _check_fit(path, model.state_dict(), state)
    model.load_state_dict(state)
    return found


def _check_fit(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    wrong = [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} is unknown" for key in found if key not in wanted]
    wrong += [
        f"{key} is {list(found[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path}: weights of another architecture: {', '.join(wrong[:3])}{more}")
