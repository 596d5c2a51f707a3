"""Choice of the device that a run is computed on."""

from __future__ import annotations

import torch

from kdflow.core.errors import UserError


def pick_device(name: str, place: int = 0) -> torch.device:
    """The device called `name`; auto takes a GPU where there is one, and deals several out by `place`.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        return cuda_device(place, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"compute.device (--device): {name}: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def cuda_device(place: int, cards: int) -> torch.device:
    """The card of the run in `place` (0, 1, ...) of those side by side: in turn, several to a card if need be."""
    return torch.device(f"cuda:{place % cards}" if cards else "cpu")


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
