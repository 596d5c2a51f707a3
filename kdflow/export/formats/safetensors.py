"""safetensors: the weights by our names, the card in the header under `kdflow`.

Run by kdflow, or by whoever builds the model that the card's settings describe.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdflow.core.errors import UserError
from kdflow.export.card import METADATA_KEY, Card
from kdflow.export.formats import Runner
from kdflow.methods.views import channel_mean_std, normalise
from kdflow.models import create_model, load_exact
from kdflow.models.safe_weights import memory_limit

SUFFIX = ".safetensors"


def write(model: nn.Module, card: Card, path: Path) -> None:
    """Write the model to `path`."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    path.write_bytes(safetensors.torch.save(state, {METADATA_KEY: card.model_dump_json()}))


def read(path: Path) -> str | None:
    """The card's text."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(METADATA_KEY)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: no safetensors file: {error}") from None


def runner(path: Path, card: Card, threads: int) -> Runner:
    """The model as kdflow evaluates it, on the CPU."""
    torch.set_num_threads(threads)
    run = card.settings
    # A recipe from elsewhere may ask for any depth and width: for no more memory than the weights explain.
    with memory_limit(path):
        model = create_model(run.architecture, run.model, run.classes, run.image_size)
    load_exact(model, path)
    model = model.to(memory_format=torch.channels_last).eval()
    mean, std = channel_mean_std(run.base_view, torch.device("cpu"))

    def ask(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(normalise(images, mean, std))
        return logits

    return ask
