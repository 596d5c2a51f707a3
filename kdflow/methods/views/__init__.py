"""Views: transforms of whole batches, on the device. The epoch plan draws their random parameters beforehand.

This module has the base view x. Each other module of this package is a strong view x' that a recipe may name. It
defines `draw(sizes, image_size, generator)`, which returns the `Draws` of a whole epoch, on the CPU;
`apply(x, draw)`, which returns the `StrongBatch` of one step, where `draw` is that step's row of the draws, on the
device; and the constant `MIXES_IMAGES`, which states whether it mixes images of a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from kdflow.config import BaseView
from kdflow.config.user_code import load_part

Draws = dict[str, Tensor]
"""Random parameters of a view by name, one row per step."""


def load_view(name: str) -> Any:
    """Return the module of a built-in strong view, or the object that is a user's.

    Raises:
        UserError: a user's code cannot be imported, or lacks a function.
    """
    view: Any = load_part("views", name, "recipes/methods.yaml: strong.view")
    return importlib.import_module(f"kdflow.methods.views.{name}") if view is None else view


@dataclass(frozen=True)
class StrongBatch:
    """Strong views x' of a batch x.

    View i mixes image `index_a[i]` of the batch with weight `lam[i]` and image `index_b[i]` with weight 1 - `lam[i]`.
    """

    images: Float[Tensor, "n 3 h w"]
    index_a: Int64[Tensor, " n"]
    index_b: Int64[Tensor, " n"]
    lam: Float[Tensor, " n"]
    teacher_logits: Float[Tensor, "n classes"] | None = None

    def take(self, rows: Int64[Tensor, " k"] | slice) -> StrongBatch:
        """Return some of the views."""
        teacher_logits = None if self.teacher_logits is None else self.teacher_logits[rows]
        return StrongBatch(self.images[rows], self.index_a[rows], self.index_b[rows], self.lam[rows], teacher_logits)


def unmixed(x: Float[Tensor, "b 3 h w"]) -> StrongBatch:
    """Return views that are made of one image each."""
    index = torch.arange(len(x), device=x.device)
    return StrongBatch(x, index, index, torch.ones(len(x), device=x.device))


def mixed_batch(
    images: Float[Tensor, "b 3 h w"], partner: Int64[Tensor, " row"], lam: Float[Tensor, ""]
) -> StrongBatch:
    """Return views that mix image i, with weight `lam`, and `partner[i]`; `partner` may be longer than the batch."""
    index = torch.arange(len(images), device=images.device)
    return StrongBatch(images, index, partner[: len(images)], lam.expand(len(images)))


def concat_draws(draws: Sequence[StrongBatch]) -> StrongBatch:
    """Return all views of several draws of one batch, with their teacher logits if those are known."""
    if len(draws) == 1:
        return draws[0]
    teacher_logits = [draw.teacher_logits for draw in draws if draw.teacher_logits is not None]
    return StrongBatch(
        torch.cat([draw.images for draw in draws]),
        torch.cat([draw.index_a for draw in draws]),
        torch.cat([draw.index_b for draw in draws]),
        torch.cat([draw.lam for draw in draws]),
        torch.cat(teacher_logits) if teacher_logits else None,
    )


def crop_and_flip(
    images: UInt8[Tensor, "b 3 size size"] | Float[Tensor, "b 3 size size"],
    shift: Int64[Tensor, "b 2"],
    flip: Bool[Tensor, " b"],
    crop: int,
) -> UInt8[Tensor, "b 3 size size"] | Float[Tensor, "b 3 size size"]:
    """Zero-pad by `crop` pixels, crop to the original size at each image's `shift` (0 to 2 crop), then flip."""
    if crop:
        size = images.shape[-1]
        padded = F.pad(images, (crop, crop, crop, crop))
        windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view: [b, 3, 2 crop + 1, 2 crop + 1, size, size]
        images = windows[torch.arange(len(images), device=images.device), :, shift[:, 0], shift[:, 1]]
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def normalise(
    images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
    mean: Float[Tensor, "1 3 1 1"],
    std: Float[Tensor, "1 3 1 1"],
) -> Float[Tensor, "b 3 h w"]:
    """Convert bytes to (value / 255 - mean) / std in float32, channels last; floating-point images keep their values.

    Floating-point images are those of a dataset that normalises them itself.
    """
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return x if images.is_floating_point() else (x / 255 - mean) / std


class BaseViewTransform:
    """Transform of images to the base view x: cropped, flipped and normalised."""

    def __init__(self, base_view: BaseView, device: torch.device) -> None:
        self.crop = base_view.crop
        self.mean, self.std = channel_mean_std(base_view, device)

    def __call__(
        self,
        images: UInt8[Tensor, "b 3 size size"] | Float[Tensor, "b 3 size size"],
        shift: Int64[Tensor, "b 2"],
        flip: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b 3 size size"]:
        """Return the view of each image."""
        return normalise(crop_and_flip(images, shift, flip, self.crop), self.mean, self.std)


def channel_mean_std(
    base_view: BaseView, device: torch.device
) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
    """Return mean and standard deviation of the channels, shaped for `normalise`."""
    mean, std = (torch.tensor(values, device=device).reshape(1, 3, 1, 1) for values in (base_view.mean, base_view.std))
    return mean, std
