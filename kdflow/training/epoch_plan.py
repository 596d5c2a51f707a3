"""The epoch plan: all randomness of an epoch, drawn at once from (seed, epoch).

It does not depend on method, student or device. So a step is a pure function of the weights and its step plan:
training can resume anywhere, is the same on CPU and GPU, and never waits for the host; and two methods with the same
seed see the same views, so that their difference is a paired one.

Each draw has a separate generator, named after its purpose: a draw that is added later changes no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kdflow.config import BaseView, StrongView
from kdflow.methods.views import Draws, load_view
from kdflow.training.sampling import Sampling


@dataclass(frozen=True)
class StepPlan:
    """Images of one step, the draws of their views, and noise.

    Attributes:
        epoch: the 0-based epoch.
        offset: position of the first image of the batch in the epoch.
        index: indices of the images in the training set.
        shift: row and column of each crop, from 0 to 2 crop.
        flip: whether each image is flipped.
        strong: draws of each strong view of the pool.
        noise: uniform noise for `picks.random`.
        seed: seed for a loss whose draws in a step would be too large for a plan.
        model_seed: seed of torch's default generators, from which dropout and stochastic depth draw.
    """

    epoch: int
    offset: int
    index: Int64[Tensor, " b"]
    shift: Int64[Tensor, "b 2"]
    flip: Bool[Tensor, " b"]
    strong: list[Draws]
    noise: Float[Tensor, " pool"]
    seed: int
    model_seed: int


@dataclass(frozen=True)
class EpochPlan:
    """Step plans of one epoch; the last batch may be smaller and is kept.

    `image_seeds`, in the order of the plan and on the CPU, seed the views that worker processes make of image files.
    """

    epoch: int
    order: Int64[Tensor, " n"]
    shift: Int64[Tensor, "n 2"]
    flip: Bool[Tensor, " n"]
    strong: list[Draws]
    noise: Float[Tensor, "steps pool"]
    seeds: list[int]
    model_seeds: list[int]
    image_seeds: Int64[Tensor, " n"]
    batch_size: int

    def __iter__(self) -> Iterator[StepPlan]:
        for step, offset in enumerate(range(0, len(self.order), self.batch_size)):
            rows = slice(offset, offset + self.batch_size)
            index = self.order[rows]
            yield StepPlan(
                epoch=self.epoch,
                offset=offset,
                index=index,
                shift=self.shift[rows],
                flip=self.flip[rows],
                strong=[{key: value[step] for key, value in draws.items()} for draws in self.strong],
                noise=self.noise[step, : len(self.strong) * len(index)],
                seed=self.seeds[step],
                model_seed=self.model_seeds[step],
            )


def draw_plan(
    seed: int,
    epoch: int,
    images: int,
    batch_size: int,
    image_size: int,
    base_view: BaseView,
    strong: StrongView | None,
    device: torch.device,
    sampling: Sampling | None = None,
) -> EpochPlan:
    """Draw the plan of the 0-based `epoch`. A strong view without pick has the first draw of the pool only.

    `sampling` draws its `images` images from those of the training set; None draws each image once.
    """

    def generator(name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))

    order_generator = generator("order")
    order = torch.randperm(images, generator=order_generator) if sampling is None else sampling.order(order_generator)
    shift = torch.randint(2 * base_view.crop + 1, (images, 2), generator=generator("crop"))
    flip = torch.rand(images, generator=generator("flip")) < (0.5 if base_view.flip else 0.0)
    sizes = [min(batch_size, images - offset) for offset in range(0, images, batch_size)]
    pool: list[Draws] = []
    if strong is not None:
        view = load_view(strong.view)
        for k in range(1 if strong.pick is None else strong.pick.pool):
            draws = view.draw(sizes, image_size, generator(f"{strong.view}/{k}"))
            pool.append({key: value.to(device) for key, value in draws.items()})
    noise = torch.rand(len(sizes), len(pool) * batch_size, generator=generator("noise")).to(device)
    seeds = torch.randint(2**31, (len(sizes),), generator=generator("seed")).tolist()
    model_seeds = torch.randint(2**31, (len(sizes),), generator=generator("model")).tolist()
    image_seeds = torch.randint(2**32, (images,), generator=generator("image"))
    return EpochPlan(
        epoch=epoch,
        order=order.to(device),
        shift=shift.to(device),
        flip=flip.to(device),
        strong=pool,
        noise=noise,
        seeds=seeds,
        model_seeds=model_seeds,
        image_seeds=image_seeds,
        batch_size=batch_size,
    )
