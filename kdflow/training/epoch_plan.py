"""The epoch plan: all of an epoch's randomness, drawn at once from (seed, epoch).

Method, student and device have no say in it. So a step is a pure function of the weights and of a row of the
plan: it can be resumed anywhere, is the same on CPU and GPU, never waits for the host, and two methods
with one seed see the same views, which makes their difference a paired one.

Every draw has a generator of its own, named by what it is for: a draw that is added later changes no other.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kdflow.config import BaseView, StrongView
from kdflow.methods.views import Draws


@dataclass(frozen=True)
class StepPlan:
    """What one step needs: which images, their base view, the draws of each strong view of the pool, and noise.

    `start` is the place of its first image in the epoch; `seed` is for a loss that draws in a step what would be too
    much for a plan.
    """

    offset: int
    index: Int64[Tensor, " b"]
    shift: Int64[Tensor, "b 2"]
    flip: Bool[Tensor, " b"]
    strong: list[Draws]
    noise: Float[Tensor, " pool"]
    seed: int


@dataclass(frozen=True)
class EpochPlan:
    """The rows of one epoch; the last batch may be short and is kept.

    `image_seeds`, in plan order and on the CPU, are for views that a worker process makes of a file.
    """

    order: Int64[Tensor, " n"]
    shift: Int64[Tensor, "n 2"]
    flip: Bool[Tensor, " n"]
    strong: list[Draws]
    noise: Float[Tensor, "steps pool"]
    seeds: list[int]
    image_seeds: Int64[Tensor, " n"]
    batch_size: int

    def __iter__(self) -> Iterator[StepPlan]:
        for step, start in enumerate(range(0, len(self.order), self.batch_size)):
            rows = slice(start, start + self.batch_size)
            index = self.order[rows]
            strong = [{key: value[step] for key, value in draws.items()} for draws in self.strong]
            noise = self.noise[step, : len(self.strong) * len(index)]
            yield StepPlan(start, index, self.shift[rows], self.flip[rows], strong, noise, self.seeds[step])


def draw_plan(
    seed: int,
    epoch: int,
    images: int,
    batch_size: int,
    image_size: int,
    base_view: BaseView,
    strong: StrongView | None,
    device: torch.device,
) -> EpochPlan:
    """Draw the plan of 0-based `epoch`. Without pick a strong view uses the first draw, with it all of the pool's."""

    def generator(name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))

    order = torch.randperm(images, generator=generator("order"))
    shift = torch.randint(2 * base_view.crop + 1, (images, 2), generator=generator("crop"))
    flip = torch.rand(images, generator=generator("flip")) < (0.5 if base_view.flip else 0.0)
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    pool: list[Draws] = []
    if strong is not None:
        view: Any = importlib.import_module(f"kdflow.methods.views.{strong.view}")
        for k in range(1 if strong.pick is None else strong.pick.pool):
            draws = view.draw(sizes, image_size, generator(f"{strong.view}/{k}"))
            pool.append({key: value.to(device) for key, value in draws.items()})
    noise = torch.rand(len(sizes), len(pool) * batch_size, generator=generator("noise")).to(device)
    seeds = torch.randint(2**31, (len(sizes),), generator=generator("seed")).tolist()
    image_seeds = torch.randint(2**32, (images,), generator=generator("image"))
    return EpochPlan(order.to(device), shift.to(device), flip.to(device), pool, noise, seeds, image_seeds, batch_size)
