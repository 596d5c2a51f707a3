"""Views: batch to batch, on the device. All their randomness was drawn before, by the epoch plan.

Here is the base view x. Every other module of this package is a strong view x', as two functions:
`draw(sizes, image_size, generator) -> Draws`, the randomness of a whole epoch on the CPU, and
`apply(x, draw) -> Strong`, where `draw` is one step's row of it on the device; `MIXES_IMAGES` says whether
it mixes images of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from kdflow.config import BaseView

Draws = dict[str, Tensor]
"""Named draws, one row a step."""


@dataclass(frozen=True)
class StrongBatch:
    """x': views of a batch x. View i is made of the images `image[i]` and, to a share of 1 - own[i], `partner[i]`."""

    images: Float[Tensor, "n 3 h w"]
    index_a: Int64[Tensor, " n"]
    index_b: Int64[Tensor, " n"]
    lam: Float[Tensor, " n"]
    teacher_logits: Float[Tensor, "n classes"] | None = None

    def take(self, rows: Int64[Tensor, " k"] | slice) -> StrongBatch:
        """Some of the views."""
        teacher_logits = None if self.teacher_logits is None else self.teacher_logits[rows]
        return StrongBatch(self.images[rows], self.index_a[rows], self.index_b[rows], self.lam[rows], teacher_logits)


def unmixed(x: Float[Tensor, "b 3 h w"]) -> StrongBatch:
    """Views that are made of one image each."""
    itself = torch.arange(len(x), device=x.device)
    return StrongBatch(x, itself, itself, torch.ones(len(x), device=x.device))


def mixed_batch(
    images: Float[Tensor, "b 3 h w"], partner: Int64[Tensor, " row"], own: Float[Tensor, ""]
) -> StrongBatch:
    """Views of which each is to a share of `own` the image in its place; `partner` may be a longer row of a plan."""
    itself = torch.arange(len(images), device=images.device)
    return StrongBatch(images, itself, partner[: len(images)], own.expand(len(images)))


def concat_draws(draws: Sequence[StrongBatch]) -> StrongBatch:
    """All views of several draws of one batch, with what the teacher said of them where that is known."""
    if len(draws) == 1:
        return draws[0]
    images, image, partner, own = zip(*((d.images, d.index_a, d.index_b, d.lam) for d in draws), strict=True)
    teacher_logits = [d.teacher_logits for d in draws if d.teacher_logits is not None]
    return StrongBatch(
        torch.cat(images),
        torch.cat(image),
        torch.cat(partner),
        torch.cat(own),
        torch.cat(teacher_logits) if teacher_logits else None,
    )


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


class BaseViewTransform:
    """x: images as the student sees them, cropped and flipped as drawn, and normalised."""

    def __init__(self, base_view: BaseView, device: torch.device) -> None:
        self.crop = base_view.crop
        self.mean, self.std = channel_mean_std(base_view, device)

    def __call__(
        self, images: UInt8[Tensor, "b 3 size size"], shift: Int64[Tensor, "b 2"], flip: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b 3 size size"]:
        """The view of each image."""
        return normalise(crop_and_flip(images, shift, flip, self.crop), self.mean, self.std)


def channel_mean_std(
    base_view: BaseView, device: torch.device
) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
    """Mean and standard deviation of the channels, shaped for `normalise`."""
    mean, std = (torch.tensor(values, device=device).reshape(1, 3, 1, 1) for values in (base_view.mean, base_view.std))
    return mean, std
