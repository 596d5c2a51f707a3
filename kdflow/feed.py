"""Batches in the order of a plan, as the student sees them: x on the device, with the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kdflow.config import Views
from kdflow.data import Images, ImageSet
from kdflow.distributed import of_all, share
from kdflow.epoch_plan import EpochPlan, Row
from kdflow.errors import UserError
from kdflow.stream import ImageFiles
from kdflow.views import BaseView, channel_statistics, normalise


@dataclass(frozen=True)
class Batch:
    """x of one row of a plan, and the labels of its images."""

    row: Row
    x: Float[Tensor, "b 3 h w"]
    labels: Int64[Tensor, " b"]


class InMemory:
    """From images that lie on the device: no worker processes, views of a whole batch at once.

    Raises:
        UserError: the settings are those of image files.
    """

    def __init__(self, images: ImageSet, views: Views) -> None:
        if views.resize is not None:
            raise UserError("recipes/datasets.yaml: views.resize is for image files; these images are all of one size")
        self.images, self.base_view = images, BaseView(views, images.images.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """The batches of an epoch."""
        return map(self.batch, plan)

    def batch(self, row: Row) -> Batch:
        """The batch of one row."""
        x = self.base_view(self.images.images[row.index], row.shift, row.flip)
        return Batch(row, x, self.images.labels[row.index])


class Streamed:
    """From files: worker processes read, crop and flip; normalised here, on the device."""

    def __init__(self, images: ImageFiles, views: Views) -> None:
        self.images, self.views = images, views
        self.mean, self.std = channel_statistics(views, images.labels.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """The batches of an epoch, some of them made ahead."""
        wanted = torch.split(torch.stack([plan.order.cpu(), plan.image_seeds], 1), plan.batch_size)
        mine = (batch[share(len(batch))].tolist() for batch in wanted)  # several processes read each image once
        for row, pixels in zip(plan, self.images.for_training(mine, self.views), strict=True):
            x = normalise(of_all(pixels, len(row.index)), self.mean, self.std)
            yield Batch(row, x, self.images.labels[row.index])


def feed_of(images: Images, views: Views) -> InMemory | Streamed:
    """The feed for images of this kind."""
    return Streamed(images, views) if isinstance(images, ImageFiles) else InMemory(images, views)
