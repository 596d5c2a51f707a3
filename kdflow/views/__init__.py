"""Views: batch to batch, on the device. All their randomness was drawn before, by the epoch plan.

Here is the base view x. Every other module of this package is a strong view x', as two functions:
`draw(sizes, image_size, generator) -> Draws`, the randomness of a whole epoch on the CPU, and
`apply(x, draw) -> x'`, where `draw` is one step's row of it on the device.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from kdflow.config import Views

Draws = dict[str, Tensor]
"""Named draws, one row a step."""


def crop_and_flip(
    images: UInt8[Tensor, "b 3 size size"], shift: Int64[Tensor, "b 2"], flip: Bool[Tensor, " b"], crop: int
) -> UInt8[Tensor, "b 3 size size"]:
    """Zero-pad by `crop`, cut a window of the old size at each image's `shift` (0 to 2 crop), then flip."""
    if crop:
        size = images.shape[-1]
        padded = F.pad(images, (crop, crop, crop, crop))
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view: [b, 3, 2 crop + 1, 2 crop + 1, size, size]
        images = windows[torch.arange(len(images), device=images.device), :, shift[:, 0], shift[:, 1]]
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def normalise(
    images: UInt8[Tensor, "b 3 h w"], mean: Float[Tensor, "1 3 1 1"], std: Float[Tensor, "1 3 1 1"]
) -> Float[Tensor, "b 3 h w"]:
    """Bytes to (value / 255 - mean) / std in float32, channels last."""
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return (x / 255 - mean) / std


def channel_statistics(views: Views, device: torch.device) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
    """Mean and standard deviation of the channels, shaped for `normalise`."""
    mean, std = (torch.tensor(values, device=device).reshape(1, 3, 1, 1) for values in (views.mean, views.std))
    return mean, std
