"""Formats of exported files: each file is complete in itself and contains its model card.

Every other module of this package is a format. It has the functions

- `write(model, card, path)`: write the model and its card to one file;
- `read_metadata(path) -> str | None`: return the card's JSON, or None if the file has none;
- `runner(path, card, threads) -> Runner`: load the file to run it on the CPU;

and `SUFFIX`, the ending of its files.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.transforms import v2

from kdflow.config import BaseView, RunSettings, choices, unknown_name
from kdflow.config.user_code import is_import_path
from kdflow.core.errors import UserError
from kdflow.data.image_files import transforms
from kdflow.export.card import ModelCard, parse_card
from kdflow.methods.views import channel_mean_std

Runner = Callable[[Tensor], Tensor]
"""A function from images, uint8 [n, 3, image_size, image_size], to logits, float32 [n, classes]."""


def make_preprocessing(run: RunSettings) -> nn.Module:
    """Return the transform of evaluation: an image of any size becomes uint8 [3, image_size, image_size].

    A small dataset has images of one size and no `resize` in its settings; both sides are resized then.
    """
    if run.base_view.resize is not None:
        return transforms(run.base_view, run.image_size, training=False)
    return v2.Compose([v2.Resize((run.image_size, run.image_size)), v2.PILToTensor()])  # type: ignore[no-any-return]


class NormalisedModel(nn.Module):
    """A model with the normalisation of its input: it takes images as uint8 from 0 to 255."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, base_view: BaseView) -> None:
        super().__init__()
        self.model = model
        for name, values in zip(("mean", "std"), channel_mean_std(base_view, torch.device("cpu")), strict=True):
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [n, classes] of uint8 images [n, 3, image_size, image_size]."""
        logits: Tensor = self.model((images.to(torch.float32) / 255 - self.mean) / self.std)
        return logits


def exported_program(model: nn.Module, card: ModelCard) -> ExportedProgram:
    """Export the normalised model as a graph for any number of images, without the paths of source files.

    Raises:
        UserError: torch.export does not support the model.
    """
    run = card.settings
    example = torch.zeros(2, 3, run.image_size, run.image_size, dtype=torch.uint8)
    normalised = NormalisedModel(model, run.base_view).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(normalised, (example,), dynamic_shapes=({0: Dim("n")},))
    except Exception as error:  # the type depends on the model
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{run.architecture}: torch.export does not support this model: {reason}") from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def format_by_name(name: str) -> Any:
    """Return the module of a format.

    Raises:
        UserError: there is no such format.
    """
    if name == "torch":  # a likely guess for a file that torch loads
        raise UserError("--format: unknown name 'torch'; did you mean 'pt2'?")
    if name not in choices("formats"):
        raise unknown_name("--format", name, choices("formats"))
    return importlib.import_module(f"kdflow.export.formats.{name}")


def format_by_suffix(path: Path) -> Any:
    """Return the module that reads a file, by the ending of the file's name.

    Raises:
        UserError: the file is missing, or its name has none of the endings.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    file_formats = [format_by_name(name) for name in choices("formats")]
    for file_format in file_formats:
        if path.suffix == file_format.SUFFIX:
            return file_format
    allowed = ", ".join(file_format.SUFFIX for file_format in file_formats)
    raise UserError(f"{path}: not an exported student: its name must end with one of {allowed}")


def read_card(path: Path) -> ModelCard:
    """Read the model card of an exported file without loading the model.

    Raises:
        UserError: the file is damaged, or was not written by `kdflow export`.
    """
    return parse_card(path, format_by_suffix(path).read_metadata(path))


def load_exported(path: Path, threads: int, *, trusted: bool) -> tuple[ModelCard, Runner]:
    """Load an exported file to run it on the CPU; return its model card too.

    Args:
        path: a file that `kdflow export` wrote.
        threads: CPU threads.
        trusted: run a .pt2 file, which is a program and may run any code, or a model that is a user's code.

    Raises:
        UserError: the file cannot be used, or is not trusted.
    """
    file_format, card = format_by_suffix(path), read_card(path)
    if file_format.SUFFIX == ".pt2" and not trusted:
        raise UserError(f"{path}: a .pt2 file is a program that may run any code; add --trust if you trust its source")
    code = sorted(filter(is_import_path, card.settings.model.families))
    if code and file_format.SUFFIX == ".safetensors" and not trusted:
        raise UserError(f"{path}: its model is code, {', '.join(code)}; add --trust if you trust it")
    return card, file_format.runner(path, card, threads)
