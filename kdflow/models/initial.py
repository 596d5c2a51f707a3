"""Initial weights: those of a file, with a new head where the number of classes differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from kdflow.config import Model
from kdflow.core.errors import UserError
from kdflow.models import create_model, create_model_on_meta, safe_weights
from kdflow.models.convert_weights import find_states, load_any_format


def head_names(name: str, recipe: Model, classes: int, image_size: int) -> set[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    states = [create_model_on_meta(name, recipe, n, image_size).state_dict() for n in (classes, classes + 1)]
    return {key for key, value in states[0].items() if value.shape != states[1][key].shape}


def load_initial(model: nn.Module, name: str, recipe: Model, file: Path, classes: int, image_size: int) -> str:
    """Load the weights of a file into `model`, which keeps its head if the file has another number of classes.

    Returns:
        What became of the head.

    Raises:
        UserError: the file cannot be read, or is of another architecture.
    """
    first_error: UserError | None = None
    for count in _class_numbers(file, classes):
        with torch.random.fork_rng(devices=[]):
            source = create_model(name, recipe, count, image_size)
        try:
            load_any_format(source, file)
        except UserError as error:
            first_error = first_error or error
            continue
        state = source.state_dict()
        if count != classes:
            state |= {key: model.state_dict()[key] for key in head_names(name, recipe, classes, image_size)}
        model.load_state_dict(state)
        return f"head of {count} classes kept" if count == classes else f"new head of {classes} classes, was {count}"
    assert first_error is not None
    raise first_error


def _class_numbers(file: Path, classes: int) -> Iterator[int]:
    """Yield the numbers of classes that the weights of a file may have: the heights of its matrices, last first."""
    yield classes
    safe_weights.check_is_file(file)
    found = [
        len(tensor)
        for state in find_states(file, safe_weights.read(file)).values()
        for tensor in state.values()
        if tensor.ndim == 2 or tensor.shape[2:] == (1, 1)
    ]
    yield from (count for count in dict.fromkeys(reversed(found)) if count > 1 and count != classes)
