"""torch.export's .pt2: a program and its weights, loaded by `torch.export.load` without kdflow.

The card is its extra file `kdflow.json`. A .pt2 is a program: torch does what it says, and may unpickle parts of it, so
one from elsewhere is to be trusted like code.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from kdflow.core.errors import UserError, one_line
from kdflow.export.card import METADATA_KEY, Card
from kdflow.export.formats import Runner, exported_program

SUFFIX = ".pt2"
LARGEST_CARD = 2**26  # bytes; a zip may claim any size


def write(model: nn.Module, card: Card, path: Path) -> None:
    """Write the model to `path`."""
    content = io.BytesIO()
    torch.export.save(
        exported_program(model, card), content, extra_files={f"{METADATA_KEY}.json": card.model_dump_json()}
    )
    path.write_bytes(content.getbuffer())


def read(path: Path) -> str | None:
    """The card's text; nothing else of the archive is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [item for item in archive.infolist() if item.filename.endswith(f"/extra/{METADATA_KEY}.json")]
            if not found or found[0].file_size > LARGEST_CARD:
                return None
            return archive.read(found[0]).decode()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no .pt2 of torch: {one_line(error)}") from None


def runner(path: Path, card: Card, threads: int) -> Runner:  # noqa: ARG001 (a form's signature)
    """The program as torch runs it, on the CPU."""
    torch.set_num_threads(threads)
    try:
        model = torch.export.load(io.BytesIO(path.read_bytes())).module()
    except OSError:
        raise
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(f"{path}: torch cannot load it: {one_line(error)[:200]}") from None

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return run
