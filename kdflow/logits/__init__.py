"""What the teacher says of the views, asked in the step or read from where it was kept.

A step asks for some views of its batch by name: `x`, and `<view>/<k>` for each draw of the strong view's pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from kdflow.distributed import of_all, share
from kdflow.epoch_plan import EpochPlan, Row
from kdflow.features import FeatureExtractor, Outputs

X = "x"
Views = Mapping[str, Float[Tensor, "_b 3 _h _w"]]


@dataclass
class Counts:
    """Of how many views the teacher was asked, and of how many it was read what it said."""

    asked: int = 0
    read: int = 0


class Source(ABC):
    """Where a run takes the teacher's outputs from."""

    def __init__(self, ask: FeatureExtractor) -> None:
        self.ask, self.counts = ask, Counts()

    def begin(self, epoch: int, plan: EpochPlan) -> None:  # noqa: B027 (not every source has something to do)
        """Make ready for a 0-based epoch."""

    @abstractmethod
    def __call__(self, row: Row, views: Views) -> dict[str, Outputs]:
        """What the teacher says of the views of a batch, without gradients."""

    def end(self) -> None:  # noqa: B027
        """Every row of the epoch was asked for."""


class Online(Source):
    """Asks the teacher in every step: one pass over all of a batch's views."""

    def __call__(self, row: Row, views: Views) -> dict[str, Outputs]:  # noqa: ARG002
        """One forward pass, which several processes share; each has all logits then."""
        images = torch.cat(list(views.values()))
        with torch.no_grad():
            said = self.ask(images[share(len(images))])
        said = replace(said, logits=of_all(said.logits, len(images)))
        self.counts.asked += len(said.logits)
        found, start = {}, 0
        for name, images in views.items():
            found[name] = said.rows(start, start + len(images))
            start += len(images)
        return found
