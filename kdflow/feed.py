"""Batches in the order of a plan, as the student sees them: x on the device, with the labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from kdflow.config import Views
from kdflow.data import ImageSet
from kdflow.epoch_plan import EpochPlan, Row
from kdflow.views import BaseView


@dataclass(frozen=True)
class Batch:
    """x of one row of a plan, and the labels of its images."""

    row: Row
    x: Float[Tensor, "b 3 h w"]
    labels: Int64[Tensor, " b"]


class InMemory:
    """From images that lie on the device: no worker processes, views of a whole batch at once."""

    def __init__(self, images: ImageSet, views: Views) -> None:
        self.images, self.base_view = images, BaseView(views, images.images.device)

    def __call__(self, plan: EpochPlan) -> Iterator[Batch]:
        """The batches of an epoch."""
        return map(self.batch, plan)

    def batch(self, row: Row) -> Batch:
        """The batch of one row."""
        x = self.base_view(self.images.images[row.index], row.shift, row.flip)
        return Batch(row, x, self.images.labels[row.index])
