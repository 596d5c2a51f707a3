"""Choice of the device that a run is computed on."""

from __future__ import annotations

import torch

from kdflow.core.errors import UserError


def pick_device(name: str, run_index: int = 0) -> torch.device:
    """Return the device `name`; auto is a GPU if there is one, and assigns parallel runs to GPUs by `run_index`.

    Raises:
        UserError: this machine has no such device.
    """
    if name == "auto":
        return cuda_device(run_index, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"compute.device (--device): {name}: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def cuda_device(run_index: int, gpus: int) -> torch.device:
    """Return the GPU of one of several parallel runs, round robin; the CPU if there are no GPUs."""
    return torch.device(f"cuda:{run_index % gpus}" if gpus else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def seed_default_generators(seed: int, device: torch.device) -> None:
    """Seed torch's default generators of the CPU and of `device`."""
    if device.type == "cpu":
        # torch.manual_seed would also queue the seed for GPUs with a stack trace, which takes 0.3 ms in each step.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
