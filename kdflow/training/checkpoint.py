"""What an interrupted run goes on from: one safetensors file per run, replaced after every epoch, and the one before.

All randomness comes from the epoch plan, so weights (a loss's own modules and buffers too), momentum and the curve
so far are the whole state.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from kdflow.config import Settings
from kdflow.core import files
from kdflow.core.errors import one_line
from kdflow.training.record import Epoch


class RunProgress(Settings):
    """How far a run is: its curve so far, its seconds of training, how often it was resumed.

    About `asked` views the teacher was asked, about `read` views a store had what it says.
    """

    run: str
    started: str
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)] = ()
    seconds: float = 0.0
    resumed: int = 0
    teacher_views_computed: int = 0
    teacher_views_read: int = 0


def previous_path(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_suffix(f".before{path.suffix}")


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: RunProgress) -> None:
    """Write a checkpoint to `path`; the one that was there is kept as `before(path)`."""
    state = {key: value.detach().cpu().contiguous() for key, value in _state(model, optimizer).items()}
    text = progress.model_dump_json()
    metadata = {"progress": text, "sha256": _digest(text, state)}
    with files.atomic_write(path) as beside:
        beside.write_bytes(safetensors.torch.save(state, metadata))
        if path.exists():
            path.replace(previous_path(path))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: str) -> RunProgress | None:
    """Put model and optimiser into the state at `path` and return the progress; None if there is no checkpoint.

    Raises:
        ValueError: the file is damaged, or of another run than `run`; model and optimiser are as they were.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
        if metadata["sha256"] != _digest(metadata["progress"], state):
            raise ValueError("content differs from its hash")
        progress = RunProgress.model_validate_json(metadata["progress"])
    except Exception as error:  # a damaged file fails in any way it likes
        raise ValueError(f"{path}: damaged checkpoint: {one_line(error)}") from None
    if progress.run != run:
        raise ValueError(f"{path}: checkpoint of another run")
    model.load_state_dict(_part(state, "model."))
    momentum = _part(state, "momentum.")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = momentum[name].to(parameter)
    return progress.model_copy(update={"resumed": progress.resumed + 1})


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    momentum = {f"momentum.{key}": optimizer.state[p]["momentum_buffer"] for key, p in model.named_parameters()}
    return weights | momentum


def _digest(progress: str, state: dict[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds: safetensors has no checksum of its own."""
    digest = hashlib.sha256(progress.encode())
    for key in sorted(state):
        digest.update(f"{key} {state[key].dtype} {list(state[key].shape)}".encode())
        digest.update(state[key].numpy().data)
    return digest.hexdigest()


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
