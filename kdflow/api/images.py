"""Images of a program, as tensors or as a map-style dataset, in the form that training reads."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from kdflow.config import BaseView
from kdflow.core.errors import UserError
from kdflow.data import Images, ImageSet
from kdflow.data.loader_workers import worker_options
from kdflow.data.map_style import MapStyleImages, read_item

_MapStyle = Dataset[Any] | Sequence[Any]
ImageData = _MapStyle | tuple[Tensor, Tensor]
"""A map-style dataset of (image, label), such as a list, or images [n, 3, size, size] and labels [n]."""


def as_images(name: str, data: ImageData, view: BaseView | None, device: torch.device, workers: int) -> Images:
    """Return one split on the device.

    Args:
        name: the name of the argument, for messages.
        data: tensors, or a dataset whose images are floats as the models take them.
        view: the base view of tensors.
        device: the device of the models.
        workers: number of processes that read a dataset.

    Raises:
        UserError: the images are of another form.
    """
    try:
        if isinstance(data, tuple):
            return _of_tensors(data, view, device)
        return _of_dataset(data, view, device, workers)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _of_tensors(data: tuple[Any, ...], view: BaseView | None, device: torch.device) -> ImageSet:
    if len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise UserError("expected a dataset or two tensors, (images, labels)")
    images, labels = data
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or len(images) != len(labels):
        raise UserError(
            f"expected images [n, 3, size, size] and labels [n], found {list(images.shape)} and {list(labels.shape)}"
        )
    if images.dtype == torch.uint8 and view is None:
        raise UserError(
            "uint8 images need the mean and std that the teacher was trained with; "
            "give view=kdflow.BaseView(crop=4, flip=True, mean=..., std=...)"
        )
    if images.dtype not in (torch.uint8, torch.float32):
        raise UserError(f"expected uint8 or float32 images, found {images.dtype}")
    return ImageSet(images.to(device, memory_format=torch.channels_last), labels.to(device, torch.int64))


def _of_dataset(data: _MapStyle, view: BaseView | None, device: torch.device, workers: int) -> MapStyleImages:
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError("expected a map-style dataset, with __len__ and __getitem__, or (images, labels)")
    if view is not None:
        raise UserError("view: only for tensors; a dataset augments and normalises its images itself")
    if not len(cast("Sized", data)):
        raise UserError("the dataset is empty")
    image, _ = read_item(data, 0)
    if image.shape[1] != image.shape[2]:
        raise UserError(f"expected square images, found {list(image.shape)}")
    labels = _targets(data)
    if labels is None:
        labels = _read_labels(data, workers)
    return MapStyleImages(data, torch.as_tensor(labels, dtype=torch.int64).to(device), image.shape[-1], workers)


def _targets(data: _MapStyle) -> Any:
    """Return the labels that a dataset lists in `targets`, as torchvision's do; None if it does not."""
    if isinstance(data, Subset):
        targets = _targets(data.dataset)
        return None if targets is None else torch.as_tensor(targets)[torch.as_tensor(data.indices)]
    if getattr(data, "target_transform", None) is not None:
        return None
    return getattr(data, "targets", None)


def _read_labels(data: _MapStyle, workers: int) -> list[int]:
    """Read all items for their labels."""
    loader: DataLoader[int] = DataLoader(_Labels(data), batch_size=None, shuffle=False, **worker_options(workers))
    return list(loader)


class _Labels(Dataset[int]):
    """The labels of a dataset."""

    def __init__(self, data: _MapStyle) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(cast("Sized", self.data))

    def __getitem__(self, index: int) -> int:
        return read_item(self.data, index)[1]
