"""Batches in the order of a plan, as the student sees them: x on the device, with the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kdflow.config import BaseView
from kdflow.core.errors import UserError
from kdflow.data import Images, ImageSet
from kdflow.data.image_files import ImageFiles
from kdflow.methods.views import BaseViewTransform, channel_mean_std, normalise
from kdflow.training.distributed import all_gather_rows, shard
from kdflow.training.epoch_plan import EpochPlan, StepPlan


@dataclass(frozen=True)
class Batch:
    """x of one row of a plan, and the labels of its images."""

    row: StepPlan
    x: Float[Tensor, "b 3 h w"]
    labels: Int64[Tensor, " b"]


class InMemoryBatches:
    """From images that lie on the device: no worker processes, views of a whole batch at once.

    Raises:
        UserError: the settings are those of image files.
    """

    def __init__(self, images: ImageSet, base_view: BaseView) -> None:
        if base_view.resize is not None:
            raise UserError("recipes/datasets.yaml: views.resize is for image files; these images are all of one size")
        self.images, self.base_view = images, BaseViewTransform(base_view, images.images.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """The batches of an epoch."""
        return map(self.batch, plan)

    def batch(self, row: StepPlan) -> Batch:
        """The batch of one row."""
        x = self.base_view(self.images.images[row.index], row.shift, row.flip)
        return Batch(row, x, self.images.labels[row.index])


class StreamedBatches:
    """From files: worker processes read, crop and flip; normalised here, on the device."""

    def __init__(self, images: ImageFiles, base_view: BaseView) -> None:
        self.images, self.base_view = images, base_view
        self.mean, self.std = channel_mean_std(base_view, images.labels.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """The batches of an epoch, some of them made ahead."""
        wanted = torch.split(torch.stack([plan.order.cpu(), plan.image_seeds], 1), plan.batch_size)
        mine = (batch[shard(len(batch))].tolist() for batch in wanted)  # several processes read each image once
        for row, pixels in zip(plan, self.images.for_training(mine, self.base_view), strict=True):
            x = normalise(all_gather_rows(pixels, len(row.index)), self.mean, self.std)
            yield Batch(row, x, self.images.labels[row.index])


def make_batches(images: Images, base_view: BaseView) -> InMemoryBatches | StreamedBatches:
    """The feed for images of this kind."""
    return StreamedBatches(images, base_view) if isinstance(images, ImageFiles) else InMemoryBatches(images, base_view)
