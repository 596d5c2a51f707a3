"""Batches of the base view x, on the device, in the order of an epoch plan."""

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
from kdflow.data.map_style import MapStyleImages
from kdflow.methods.views import BaseViewTransform, channel_mean_std, normalise
from kdflow.training.distributed import all_gather_rows, shard
from kdflow.training.epoch_plan import EpochPlan, StepPlan


@dataclass(frozen=True)
class Batch:
    """The base view x of the images of a step plan, and their labels."""

    plan: StepPlan
    x: Float[Tensor, "b 3 h w"]
    labels: Int64[Tensor, " b"]


class InMemoryBatches:
    """Batches of images that are on the device: no worker processes, views of a whole batch at once.

    Raises:
        UserError: the base view is for image files.
    """

    def __init__(self, images: ImageSet, base_view: BaseView) -> None:
        if base_view.resize is not None:
            raise UserError(
                "recipes/datasets.yaml: base_view.resize: only for image files, this dataset has images of one size"
            )
        self.images, self.base_view = images, BaseViewTransform(base_view, images.images.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """Iterate over the batches of an epoch."""
        return map(self.batch, plan)

    def batch(self, plan: StepPlan) -> Batch:
        """Return the batch of one step."""
        x = self.base_view(self.images.images[plan.index], plan.shift, plan.flip)
        return Batch(plan, x, self.images.labels[plan.index])


class StreamedBatches:
    """Batches of image files or a user's dataset: worker processes read and augment them; the device normalises."""

    def __init__(self, images: ImageFiles | MapStyleImages, base_view: BaseView) -> None:
        self.images, self.base_view = images, base_view
        self.mean, self.std = channel_mean_std(base_view, images.labels.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """Iterate over the batches of an epoch; some are prepared ahead."""
        requests = torch.split(torch.stack([plan.order.cpu(), plan.image_seeds], 1), plan.batch_size)
        local = (batch[shard(len(batch))].tolist() for batch in requests)  # several processes read each image once
        for step_plan, pixels in zip(plan, self.images.for_training(local, self.base_view), strict=True):
            x = normalise(all_gather_rows(pixels, len(step_plan.index)), self.mean, self.std)
            yield Batch(step_plan, x, self.images.labels[step_plan.index])


def make_batches(images: Images, base_view: BaseView) -> InMemoryBatches | StreamedBatches:
    """Return the batches for images of this kind."""
    return InMemoryBatches(images, base_view) if isinstance(images, ImageSet) else StreamedBatches(images, base_view)
