"""The images of an epoch: which are trained on, which are held out, and how often each class is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kdflow.config import RunSettings
from kdflow.data import Images, balanced_order


@dataclass(frozen=True)
class Sampling:
    """The indices of the images that an epoch draws from, on the CPU.

    With `weights`, it draws as many images as there are, with replacement and in proportion to their weights, as
    torch's WeightedRandomSampler.
    """

    index: Int64[Tensor, " n"]
    weights: Float[Tensor, " n"] | None = None

    def order(self, generator: torch.Generator) -> Int64[Tensor, " n"]:
        """Return the order of the images in an epoch."""
        if self.weights is None:
            return self.index[torch.randperm(len(self.index), generator=generator)]
        return self.index[torch.multinomial(self.weights, len(self.index), replacement=True, generator=generator)]


def held_out(labels: Int64[Tensor, " n"], count: int) -> Int64[Tensor, " count"]:
    """Return the sorted indices of `count` images, the same fraction of every class to within one image.

    They are random within a class, and always the same. They are taken at equal distances from the images in the order
    of their classes.
    """
    by_class = torch.from_numpy(balanced_order(labels.numpy()))
    by_class = by_class[labels[by_class].argsort(stable=True)]
    return by_class[(2 * torch.arange(count) + 1) * len(labels) // (2 * count)].sort().values


def split(run: RunSettings, images: Images) -> tuple[Sampling | None, Images | None]:
    """Return how the epochs of a run draw their images, and the images that it holds out.

    The first is None where all images are drawn once, the second where none are held out.
    """
    labels, count = images.labels.cpu(), run.held_out_images
    if count == 0 and run.training.class_balance != "sampler":
        return None, None
    out = held_out(labels, count)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[out] = False
    index = kept.nonzero().flatten()
    weights = None
    if run.training.class_balance == "sampler":
        weights = 1 / labels[index].bincount(minlength=run.classes)[labels[index]].double()
    return Sampling(index, weights), images.take(out) if count else None


def class_weights(
    run: RunSettings, labels: Int64[Tensor, " n"], sampling: Sampling | None
) -> Float[Tensor, " c"] | None:
    """Return a weight for each class, in inverse proportion to its images, if the run has weights.

    The mean over the images is 1.
    """
    if run.training.class_balance != "weights":
        return None
    fitted = labels.cpu() if sampling is None else labels.cpu()[sampling.index]
    counts = fitted.bincount(minlength=run.classes)
    return (len(fitted) / (run.classes * counts.clamp(min=1))).float().to(labels.device)
