"""A user's map-style dataset of (image, label), which makes the views of its images itself.

Before each batch, the generators of torch, NumPy and Python are seeded with a seed of the epoch plan. So the dataset's
random transforms do not depend on the number of workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from kdflow.config import BaseView
from kdflow.core.errors import UserError
from kdflow.data.image_files import ImageRequests
from kdflow.data.loader_workers import worker_options


@dataclass(frozen=True)
class MapStyleImages:
    """One split as a dataset whose items are (image [3, size, size] as models take it, label); labels on the device.

    `workers` processes read it; 0 reads in this process.
    """

    dataset: Dataset[Any] | Sequence[Any]
    labels: Int64[Tensor, " n"]
    image_size: int
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Int64[Tensor, " k"]) -> MapStyleImages:
        """Return the images `index` only; `index` is on the CPU."""
        labels = self.labels[index.to(self.labels.device)]
        return MapStyleImages(Subset(self.dataset, index.tolist()), labels, self.image_size, self.workers)  # type: ignore[arg-type]

    def for_training(
        self,
        batches: Iterable[ImageRequests],
        base_view: BaseView,  # noqa: ARG002 (the signature of `ImageFiles`)
    ) -> Iterator[Float[Tensor, "_b 3 _size _size"]]:
        """Yield the images of each batch, read with the seed of its first image."""
        items = _Batches(self.dataset, self.labels.tolist(), self.image_size)
        loader: DataLoader[Tensor | UserError] = DataLoader(
            items,
            sampler=batches,
            batch_size=None,  # a batch is one item, so that one worker reads all of it
            **worker_options(self.workers),
            pin_memory=self.labels.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global generator
        )
        for images in loader:
            if isinstance(images, UserError):
                raise images
            yield images.to(self.labels.device, non_blocking=True)

    def for_testing(
        self, batch_size: int, base_view: BaseView, rows: slice
    ) -> Iterator[Float[Tensor, "_b 3 _size _size"]]:
        """Yield batches of the images `rows`, in order."""
        requests = [[index, 0] for index in range(rows.start, rows.stop)]
        batches = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
        return self.for_training(batches, base_view)


class _Batches(Dataset[Tensor | UserError]):
    """Batches of images [b, 3, size, size] on the CPU, read in a worker."""

    def __init__(self, dataset: Dataset[Any] | Sequence[Any], labels: list[int], image_size: int) -> None:
        self.dataset, self.labels, self.image_size = dataset, labels, image_size

    def __getitem__(self, requests: ImageRequests) -> Tensor | UserError:
        try:
            with seeded(requests[0][1]):
                return torch.stack([self._image(index) for index, _ in requests])
        except UserError as error:
            return error  # raised in a worker, its text would include the worker's traceback

    def _image(self, index: int) -> Tensor:
        image, label = read_item(self.dataset, index)
        if label != self.labels[index]:
            raise UserError(f"item {index}: its label is {label}, in `targets` it is {self.labels[index]}")
        if image.shape[1:] != (self.image_size, self.image_size):
            raise UserError(f"item {index}: has shape {list(image.shape)}, the first one {self.image_size} px a side")
        return image


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of torch, NumPy and Python, and restore their states afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def read_item(dataset: Dataset[Any] | Sequence[Any], index: int) -> tuple[Tensor, int]:
    """Return the image and the label of one item.

    Raises:
        UserError: the item is not a pair of a float tensor [3, size, size] and a class.
    """
    item = dataset[index]
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise UserError(f"item {index}: expected (image, label), found {type(item).__name__}")
    image, label = item
    if not (isinstance(image, Tensor) and image.is_floating_point() and image.dim() == 3 and len(image) == 3):
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise UserError(
            f"item {index}: expected a float tensor [3, size, size] as the models take it, found {found}; "
            "add torchvision's ToTensor() and Normalize() to its transforms"
        )
    return image, int(label)
