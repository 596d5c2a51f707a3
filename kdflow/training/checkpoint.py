"""Checkpoints: one safetensors file per run, replaced after each epoch; the previous one is kept beside it.

All randomness comes from the epoch plan, so that weights (with those and the buffers of an extra loss), the state of
the optimiser and the curve are the whole state of a run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

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
    """Progress of a run.

    Attributes:
        run: key of the run.
        started: time of the first start, in UTC.
        curve: the finished epochs.
        seconds: seconds of training.
        resumed: number of times that it was resumed.
        teacher_views_computed: number of views whose teacher outputs were computed.
        teacher_views_read: number of views whose teacher logits were read from a store.
    """

    run: str
    started: str
    curve: Annotated[tuple[Epoch, ...], Field(strict=False)] = ()
    seconds: float = 0.0
    resumed: int = 0
    teacher_views_computed: int = 0
    teacher_views_read: int = 0


def previous_path(path: Path) -> Path:
    """Return the path of the previous checkpoint, for the checkpoint at `path`."""
    return path.with_suffix(f".before{path.suffix}")


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: RunProgress) -> None:
    """Write a checkpoint to `path`, and move the one that was there to `previous_path(path)`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    text = json.dumps(
        {"progress": progress.model_dump(mode="json"), "optimizer": _pack(optimizer.state_dict(), "optimizer", tensors)}
    )
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with files.atomic_write(path) as beside:
        beside.write_bytes(safetensors.torch.save(tensors, {"state": text, "sha256": _digest(text, tensors)}))
        if path.exists():
            path.replace(previous_path(path))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: str) -> RunProgress | None:
    """Restore the state of model and optimiser from `path` and return the progress; None if there is no checkpoint.

    Raises:
        ValueError: the file is damaged, or belongs to another run than `run`; model and optimiser are not changed.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        if metadata["sha256"] != _digest(metadata["state"], tensors):
            raise ValueError("content differs from its hash")
        state = json.loads(metadata["state"])
        progress = RunProgress.model_validate(state["progress"])
    except Exception as error:  # safetensors raises many kinds of exceptions for a damaged file
        raise ValueError(f"{path}: damaged checkpoint: {one_line(error)}") from None
    if progress.run != run:
        raise ValueError(f"{path}: checkpoint of another run")
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    optimizer.load_state_dict(_unpack(state["optimizer"], tensors))
    return progress.model_copy(update={"resumed": progress.resumed + 1})


# An optimiser's state is nested dicts, lists and tuples of tensors and scalars. As JSON, each container is a list that
# starts with its kind (JSON has neither tuples nor integers as keys), and a tensor is its name in the file.


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON; its tensors are added to `tensors`, below `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, dict):
        return ["dict", *([key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items())]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, *(_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value))]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what `_pack` was given."""
    if not isinstance(value, list):
        return value
    kind, *items = value
    if kind == "tensor":
        return tensors[items[0]]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in items}
    unpacked = [_unpack(item, tensors) for item in items]
    return unpacked if kind == "list" else tuple(unpacked)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of all that a checkpoint holds, since safetensors has no checksum."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
