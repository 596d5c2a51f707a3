"""The .pt2 format of torch.export: a program with its weights, loaded by `torch.export.load` without kdflow.

The model card is the extra file `kdflow.json`. Loading a .pt2 file can run code, since torch may unpickle parts of it:
load only files whose source you trust.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from kdflow.core.errors import UserError, one_line
from kdflow.export.card import METADATA_KEY, ModelCard
from kdflow.export.formats import Runner, exported_program

SUFFIX = ".pt2"
MAX_CARD_BYTES = 2**26  # a zip file may declare any size


def write(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Write the model to `path`."""
    content = io.BytesIO()
    torch.export.save(
        exported_program(model, card), content, extra_files={f"{METADATA_KEY}.json": card.model_dump_json()}
    )
    path.write_bytes(content.getbuffer())


def read_metadata(path: Path) -> str | None:
    """Read the model card's JSON and nothing else of the archive; None if there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(f"/extra/{METADATA_KEY}.json")]
            if not members or members[0].file_size > MAX_CARD_BYTES:
                return None
            return archive.read(members[0]).decode()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a .pt2 file of torch: {one_line(error)}") from None


def runner(path: Path, card: ModelCard, threads: int) -> Runner:  # noqa: ARG001 (the signature of all formats)
    """Load the program in torch, on the CPU."""
    torch.set_num_threads(threads)
    try:
        model = torch.export.load(io.BytesIO(path.read_bytes())).module()
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail with any exception
        raise UserError(f"{path}: torch cannot load it: {one_line(error)[:200]}") from None

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return run
