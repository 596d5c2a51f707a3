"""Datasets as one HDF5 file each: uint8 images and labels, checked when written and when read.

Every other module of this package reads one source: `read(spec, folder, downloads) -> Splits`.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from kdflow import files
from kdflow.config import Data
from kdflow.errors import UserError, one_line

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """Images [n, height, width, 3] uint8 RGB and labels [n] int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """What a reader returns."""

    train: Split
    test: Split
    class_names: list[str]


@dataclass(frozen=True)
class ImageSet:
    """One split on the device. `images` is laid out channels last, the form that convolutions are fastest in."""

    images: UInt8[Tensor, "n 3 size size"]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Loaded:
    """Both splits on the device, the names of the classes, and the SHA-256 of all of it."""

    train: ImageSet
    test: ImageSet
    class_names: list[str]
    sha256: str


def prepare(name: str, spec: Data, folder: Path | None, downloads: Path, out: Path) -> str:
    """Read dataset `name` by its reader, check it against `spec` and write it to `out` as HDF5.

    Args:
        folder: take the source from here; None downloads it to `downloads` if its reader can.

    Returns:
        The SHA-256 of images and labels, in hex.

    Raises:
        UserError: the source is missing, damaged, or not what `spec` says.
    """
    reader: Any = importlib.import_module(f"kdflow.data.{spec.reader}")
    splits: Splits = reader.read(spec, folder, downloads)
    _check(spec, splits)
    digest = _digest(splits)
    content = io.BytesIO()  # HDF5's own writing may crash on a full disk
    with h5py.File(content, "w") as file:
        file.attrs["name"] = name
        file.attrs["classes"] = splits.class_names
        file.attrs["sha256"] = digest
        for key in SPLITS:
            split: Split = getattr(splits, key)
            file.create_dataset(f"{key}/images", data=split.images)
            file.create_dataset(f"{key}/labels", data=split.labels)
    files.write_bytes(out, content.getbuffer())
    return digest


def load(path: Path, train_images: int, device: torch.device) -> Loaded:
    """Read a dataset written by `prepare` onto the device, verifying its hash.

    Args:
        train_images: how many training images to take: the first of `balanced_order`, in file order.

    Raises:
        UserError: the file is missing, not HDF5, or its content is not what was written.
    """
    try:
        with h5py.File(path, "r") as file:
            train, test = (Split(file[f"{key}/images"][:], file[f"{key}/labels"][:]) for key in SPLITS)
            splits = Splits(train, test, list(file.attrs["classes"]))
            expected = str(file.attrs["sha256"])
        found = _digest(splits)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro prepare` makes it") from None
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(f"{path}: damaged, or no dataset file of kdflow ({one_line(error)})") from None
    if found != expected:
        raise UserError(f"{path}: content differs from its hash {expected[:12]}...; `dvc repro -f prepare` mends it")
    if train_images < len(train.labels):
        kept = np.sort(balanced_order(train.labels)[:train_images])
        train = Split(train.images[kept], train.labels[kept])
    return Loaded(_to_device(train, device), _to_device(test, device), splits.class_names, expected)


def balanced_order(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """An order of the images in which every prefix holds the classes in equal shares, to within one image.

    It is random within a class but always the same, so a smaller subset is part of every larger one.
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))  # RandomState's stream is frozen by numpy
    rank = np.empty(len(labels), dtype=np.intp)  # how many of its class stand before an image
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = np.arange(len(of_class))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def _to_device(split: Split, device: torch.device) -> ImageSet:
    # Stored as [n, h, w, 3]: seen as [n, 3, h, w] this is the channels-last layout, without a copy.
    images = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2)
    return ImageSet(images, torch.from_numpy(split.labels).to(device))


def _check(spec: Data, splits: Splits) -> None:
    if len(splits.class_names) != spec.classes:
        raise UserError(f"{spec.reader}: {len(splits.class_names)} class names found, expected {spec.classes}")
    for key, count in (("train", spec.train_images), ("test", spec.test_images)):
        split: Split = getattr(splits, key)
        shape = (count, spec.image_size, spec.image_size, 3)
        if split.images.shape != shape or split.images.dtype != np.uint8:
            found = f"{split.images.dtype} {list(split.images.shape)}"
            raise UserError(f"{spec.reader}: {key} images: expected uint8 {list(shape)}, found {found}")
        if split.labels.shape != (count,):
            raise UserError(f"{spec.reader}: {key} labels: expected {count}, found {list(split.labels.shape)}")
        present = np.unique(split.labels)
        if not np.array_equal(present, np.arange(spec.classes)):
            raise UserError(
                f"{spec.reader}: {key} labels: expected every class from 0 to {spec.classes - 1}, found "
                f"{len(present)} classes from {present.min()} to {present.max()}"
            )


def _digest(splits: Splits) -> str:
    digest = hashlib.sha256()
    for key in SPLITS:
        split: Split = getattr(splits, key)
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
    digest.update("\n".join(splits.class_names).encode())
    return digest.hexdigest()
