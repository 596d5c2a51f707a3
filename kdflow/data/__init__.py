"""Datasets as one HDF5 file each, checked when written and when read: uint8 images and labels, or a list of files.

Every other module of this package reads one source: `read(spec, folder, downloads) -> Splits`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from kdflow.config import BaseView, DatasetSource
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.data.image_files import FileList, ImageFiles, TarFileList

SPLITS, CLASSES = ("train", "test"), "class_names"


@dataclass(frozen=True)
class Split:
    """Images [n, height, width, 3] uint8 RGB and labels [n] int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def take(self, kept: npt.NDArray[np.intp]) -> Split:
        """Some of the images."""
        return Split(self.images[kept], self.labels[kept])

    def update(self, digest: hashlib._Hash) -> None:
        """Add every image and label."""
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)


@dataclass(frozen=True)
class Splits:
    """What a reader returns: images, or files of `folder`."""

    train: Split | FileList
    test: Split | FileList
    class_names: list[str]
    folder: Path | None = None


@dataclass(frozen=True)
class ImageSet:
    """One split on the device. `images` is laid out channels last, the form that convolutions are fastest in."""

    images: UInt8[Tensor, "n 3 size size"]
    labels: Int64[Tensor, " n"]
    workers: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[-1]

    def for_testing(
        self, batch_size: int, base_view: BaseView, rows: slice
    ) -> Sequence[UInt8[Tensor, "_b 3 _size _size"]]:  # noqa: ARG002
        """Some of the images in order, as they are."""
        return torch.split(self.images[rows], batch_size)


Images = ImageSet | ImageFiles
"""One split, in memory or in files: both have labels, a length, a size, and batches to be tested on."""


@dataclass(frozen=True)
class Loaded:
    """Both splits on the device, the names of the classes, and the SHA-256 of all of it."""

    train: Images
    test: Images
    class_names: list[str]
    sha256: str


def prepare(
    name: str, spec: DatasetSource, folder: Path | None, downloads: Path, out: Path, wanted: int | None = None
) -> str:
    """Read dataset `name` by its reader, check it against `spec` and write it to `out` as HDF5.

    Args:
        folder: take the source from here; None downloads it to `downloads` if its reader can.
        wanted: so many training images are enough, if they are not all there; None: all that `spec` says.

    Returns:
        The SHA-256 of images and labels, or of the list of files, in hex.

    Raises:
        UserError: the source is missing, damaged, or not what `spec` says.
    """
    reader: Any = importlib.import_module(f"kdflow.data.readers.{spec.reader}")
    splits: Splits = reader.read(spec, folder, downloads)
    _check(spec, splits, wanted)
    return write(name, spec.image_size, splits, out)


def write(name: str, image_size: int, splits: Splits, out: Path) -> str:
    """Write both splits to `out` as HDF5, all or nothing; returns the SHA-256 of images and labels, or of the list."""
    digest = _digest(splits)
    with files.atomic_write(out) as beside:
        _reserve(beside, splits, 2**20)  # refused before HDF5 begins, which then lets go of it
        with h5py.File(beside, "w", locking=False) as file:
            _reserve(beside, splits, 0)
            file.attrs["name"] = name
            file[CLASSES] = splits.class_names  # no attribute, of which HDF5 takes 64 kB
            file.attrs["sha256"] = digest
            if splits.folder is not None:
                file.attrs["folder"] = os.fsencode(splits.folder)
                file.attrs["image_size"] = image_size
            for key in SPLITS:
                for part, values in vars(getattr(splits, key)).items():
                    file[f"{key}/{part}"] = values
    return digest


def _reserve(file: Path, splits: Splits, more: int) -> None:
    """Take the space on disk at once, and so much more: HDF5's own writing may crash on a full disk."""
    size = sum(np.asarray(values).nbytes for key in SPLITS for values in vars(getattr(splits, key)).values())
    with file.open("r+b") as raw:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(raw.fileno(), 0, size + more)


def download(spec: DatasetSource, downloads: Path, name: str) -> Path:
    """Download the archive of a dataset, if it is not there, and check it.

    Raises:
        UserError: it cannot be had, or has another checksum.
    """
    from torchvision.datasets.utils import download_url

    if spec.url is None or spec.md5 is None:
        raise UserError("recipes/datasets.yaml: url and md5 are both needed to download; or set data_folder")
    try:
        download_url(spec.url, downloads, name, md5=spec.md5)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # RuntimeError: the checksum differs
        (downloads / name).unlink(missing_ok=True)
        reason = f"the download's md5 is not {spec.md5}" if isinstance(error, RuntimeError) else one_line(error)
        raise UserError(f"{spec.url}: {reason}; or set data_folder to a copy that you have") from None
    return downloads / name


def class_names(path: Path) -> list[str]:
    """The names of the classes of a dataset that was written just now."""
    with h5py.File(path, "r") as file:
        return _names(file)


def largest_class(path: Path) -> float:
    """Of how many percent of the test images it is right always to say the same class."""
    with h5py.File(path, "r") as file:
        counts = np.bincount(file["test/labels"][:])
    return float(100 * counts.max() / counts.sum())


def _names(file: h5py.File) -> list[str]:
    if CLASSES in file:
        return list(file[CLASSES].asstr()[:])
    return list(file.attrs["classes"])  # of files from before


def load(path: Path, train_images: int, device: torch.device, workers: int = 0) -> Loaded:
    """Read a dataset written by `prepare` onto the device, verifying its hash; of files, that they are there.

    Args:
        train_images: how many training images to take: the first of `balanced_order`, in file order.
        workers: how many processes are to read images that are files.

    Raises:
        UserError: the file is missing, not HDF5, or its content is not what was written; or an image's file is missing
            or has another size.
    """
    try:
        with h5py.File(path, "r") as file:
            kind = TarFileList if "offsets" in file["train"] else FileList if "folder" in file.attrs else Split
            train, test = (kind(*(_value(file[key][field.name]) for field in fields(kind))) for key in SPLITS)
            splits = Splits(train, test, _names(file))
            place = None if kind is Split else _place(file.attrs)
            expected = str(file.attrs["sha256"])
        found = _digest(splits)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro prepare` makes it") from None
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(f"{path}: damaged, or no dataset file of kdflow ({one_line(error)})") from None
    if found != expected:
        raise UserError(f"{path}: content differs from its hash {expected[:12]}...; `dvc repro -f prepare` mends it")
    if train_images < len(train.labels):
        train = train.take(np.sort(balanced_order(train.labels)[:train_images]))
    on_device = [_to_device(split, place, device, workers) for split in (train, test)]
    return Loaded(on_device[0], on_device[1], splits.class_names, expected)


def _value(stored: h5py.Dataset) -> Any:
    return stored[:] if stored.shape else stored.asstr()[()]


def _place(attributes: Any) -> tuple[Path, int]:
    return Path(os.fsdecode(attributes["folder"])), int(attributes["image_size"])


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


def _to_device(split: Split | FileList, place: tuple[Path, int] | None, device: torch.device, workers: int) -> Images:
    labels = torch.from_numpy(split.labels).to(device)
    if isinstance(split, Split):
        # Stored as [n, h, w, 3]: seen as [n, 3, h, w] this is the channels-last layout, without a copy.
        return ImageSet(torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2), labels)
    assert place is not None
    folder, image_size = place
    split.check(folder)
    return ImageFiles(folder, split, labels, image_size, workers)


def _check(spec: DatasetSource, splits: Splits, wanted: int | None) -> None:
    if len(splits.class_names) != spec.classes:
        raise UserError(f"{spec.reader}: {len(splits.class_names)} class names found, expected {spec.classes}")
    for key, count in (("train", spec.train_images), ("test", spec.test_images)):
        split: Split | FileList = getattr(splits, key)
        there = len(split.labels)
        enough = key == "train" and wanted is not None and wanted <= there < count
        less = f"; train_images: {there} would do with these" if key == "train" and 0 < there < count else ""
        shape = (there if enough else count, spec.image_size, spec.image_size, 3)
        if isinstance(split, Split) and (split.images.shape != shape or split.images.dtype != np.uint8):
            found = f"{split.images.dtype} {list(split.images.shape)}"
            raise UserError(f"{spec.reader}: {key} images: expected uint8 {list(shape)}, found {found}{less}")
        if split.labels.shape != shape[:1]:
            raise UserError(f"{spec.reader}: {key} labels: expected {count}, found {list(split.labels.shape)}{less}")
        present = np.unique(split.labels)
        if not np.array_equal(present, np.arange(spec.classes)):
            raise UserError(
                f"{spec.reader}: {key} labels: expected every class from 0 to {spec.classes - 1}, found "
                f"{len(present)} classes from {present.min()} to {present.max()}"
            )


def _digest(splits: Splits) -> str:
    digest = hashlib.sha256()
    for split in (splits.train, splits.test):
        split.update(digest)
    digest.update("\n".join(splits.class_names).encode())
    return digest.hexdigest()
