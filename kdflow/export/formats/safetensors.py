"""The safetensors format: the weights by kdflow's names, with the model card in the header under the key `kdflow`.

kdflow can run such a file. Other programs have to build the model that the card's settings describe.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdflow.core.errors import UserError
from kdflow.export.card import METADATA_KEY, ModelCard
from kdflow.export.formats import Runner
from kdflow.methods.views import channel_mean_std, normalise
from kdflow.models import create_model, load_exact
from kdflow.models.safe_weights import memory_limit

SUFFIX = ".safetensors"


def write(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write the model to `path`."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    path.write_bytes(safetensors.torch.save(state, {METADATA_KEY: card.model_dump_json()}))


def read_metadata(path: Path) -> str | None:
    """Read the model card's JSON; None if there is none."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(METADATA_KEY)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None


def runner(path: Path, card: ModelCard, threads: int) -> Runner:
    """Load the model as in evaluation, on the CPU."""
    torch.set_num_threads(threads)
    settings = card.settings
    # The settings may describe a model of any size: allow no more memory than the file's size explains.
    with memory_limit(path):
        model = create_model(settings.architecture, settings.model, settings.classes, settings.image_size)
    load_exact(model, path)
    model = model.to(memory_format=torch.channels_last).eval()
    mean, std = channel_mean_std(settings.base_view, torch.device("cpu"))

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(normalise(images, mean, std))
        return logits

    return run
