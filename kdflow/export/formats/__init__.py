"""Forms in which a student leaves: each is one file that stands alone, with a card that says what it is.

Every other module of this package is a form: `write(model, card, path)`, `read(path) -> str` (the card's text) and
`runner(path, card, threads) -> Run`; `SUFFIX` is how its files end.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torchvision.transforms import v2

from kdflow.config import BaseView, RunSettings, choices, unknown_name
from kdflow.core.errors import UserError
from kdflow.data.image_files import transforms
from kdflow.export.card import Card, parse_card
from kdflow.methods.views import channel_mean_std

Runner = Callable[[Tensor], Tensor]
"""Images uint8 [n, 3, size, size] to logits float32 [n, classes]."""


def preprocess(run: RunSettings) -> nn.Module:
    """From an image of any size to [3, size, size] uint8, as in testing; images of small datasets are of one size."""
    if run.base_view.resize is not None:
        return transforms(run.base_view, run.image_size, training=False)
    return v2.Compose([v2.Resize((run.image_size, run.image_size)), v2.PILToTensor()])  # type: ignore[no-any-return]


class FromBytes(nn.Module):
    """A model that takes images as they are, uint8, and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, base_view: BaseView) -> None:
        super().__init__()
        self.model = model
        for name, values in zip(("mean", "std"), channel_mean_std(base_view, torch.device("cpu")), strict=True):
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model((images.to(torch.float32) / 255 - self.mean) / self.std)
        return logits


def exported_program(model: nn.Module, card: Card) -> ExportedProgram:
    """The model as a graph for any number of images, without the names of our source files.

    Raises:
        UserError: torch cannot make a graph of it.
    """
    run = card.settings
    example = torch.zeros(2, 3, run.image_size, run.image_size, dtype=torch.uint8)
    try:
        with torch.no_grad():
            found = torch.export.export(
                FromBytes(model, run.base_view).eval(), (example,), dynamic_shapes=({0: Dim("n")},)
            )
    except Exception as error:  # a model that is no graph fails in any way it likes
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{run.architecture}: torch.export cannot make a graph of it: {reason}") from None
    for node in found.graph.nodes:
        node.meta.pop("stack_trace", None)
    return found


def format_by_name(name: str) -> Any:
    """The module of a form.

    Raises:
        UserError: there is no such form.
    """
    if name == "torch":  # what a user tries first for a file that torch loads
        raise UserError("--format: unknown name 'torch'; did you mean 'pt2'?")
    if name not in choices("formats"):
        raise unknown_name("--format", name, choices("formats"))
    return importlib.import_module(f"kdflow.export.formats.{name}")


def format_by_suffix(path: Path) -> Any:
    """The module that reads a file, by how its name ends.

    Raises:
        UserError: it is missing, or no form ends so.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    forms = [format_by_name(name) for name in choices("formats")]
    for form in forms:
        if path.suffix == form.SUFFIX:
            return form
    allowed = ", ".join(form.SUFFIX for form in forms)
    raise UserError(f"{path}: no exported student: its name ends with none of {allowed}")


def read_card(path: Path) -> Card:
    """The card of an exported file; nothing of the model is loaded.

    Raises:
        UserError: the file is damaged, or was not made by `kdflow export`.
    """
    return parse_card(path, format_by_suffix(path).read(path))


def require(*packages: str) -> None:
    """Refuse to go on without packages of the extra `onnx`.

    Raises:
        UserError: the ones that are missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install -e '.[onnx]'")
