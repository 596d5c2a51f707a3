"""Datasets as one HDF5 file each, checked when written and when read: uint8 images and labels, or a list of files.

Each module of `readers` reads one source: `read(spec, folder, downloads) -> Splits`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from kdflow.config import BaseView, DatasetSource
from kdflow.config.user_code import load_part
from kdflow.core import files
from kdflow.core.download import DownloadSpec, download
from kdflow.core.errors import UserError, one_line
from kdflow.core.progress import Display
from kdflow.data.image_files import FileList, ImageFiles, TarFileList, ZipFileList
from kdflow.data.map_style import MapStyleImages

SPLITS, CLASSES = ("train", "test"), "class_names"


@dataclass(frozen=True)
class Split:
    """Images [n, height, width, 3] uint8 RGB and labels [n] int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def take(self, kept: npt.NDArray[np.intp]) -> Split:
        """Return the split with the images `kept` only."""
        return Split(self.images[kept], self.labels[kept])

    def update(self, digest: hashlib._Hash) -> None:
        """Add every image and label to `digest`."""
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)


@dataclass(frozen=True)
class Splits:
    """The result of a reader: images in memory, or files in `folder`."""

    train: Split | FileList
    test: Split | FileList
    class_names: list[str]
    folder: Path | None = None


@dataclass(frozen=True)
class ImageSet:
    """One split on the device. `images` is in the channels-last memory format, the fastest one for convolutions.

    Prepared datasets have bytes; float32 images are those of a user, already normalised.
    """

    images: UInt8[Tensor, "n 3 size size"] | Float[Tensor, "n 3 size size"]
    labels: Int64[Tensor, " n"]
    workers: ClassVar[int] = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[-1]

    def take(self, index: Int64[Tensor, " k"]) -> ImageSet:
        """Return the images `index` only; `index` is on the CPU."""
        index = index.to(self.labels.device)
        return ImageSet(self.images[index], self.labels[index])

    def for_testing(
        self,
        batch_size: int,
        base_view: BaseView,  # noqa: ARG002 (the signature of `ImageFiles`)
        rows: slice,
    ) -> Sequence[UInt8[Tensor, "_b 3 _size _size"] | Float[Tensor, "_b 3 _size _size"]]:
        """Return batches of the images `rows`, in order and without augmentation."""
        return torch.split(self.images[rows], batch_size)


Images = ImageSet | ImageFiles | MapStyleImages
"""One split, in memory, in files, or in a user's dataset.

All have labels, a length, an image size and batches for testing.
"""


@dataclass(frozen=True)
class Loaded:
    """Both splits on the device, the names of the classes, and the SHA-256 of all of it."""

    train: Images
    test: Images
    class_names: list[str]
    sha256: str


def prepare(
    name: str, spec: DatasetSource, folder: Path | None, downloads: Path, out: Path, min_train_images: int | None = None
) -> str:
    """Read dataset `name` with its reader, check it against `spec` and write it to `out` as HDF5.

    Args:
        folder: the source; None downloads it to `downloads` if the reader can.
        min_train_images: accept this number of training images if the source has fewer than `spec.train_images`;
            None requires all.

    Returns:
        The SHA-256 of images and labels, or of the list of files, in hex.

    Raises:
        UserError: the source is missing, damaged, or differs from `spec`.
    """
    key = f"recipes/datasets.yaml: {name}.data.reader"
    reader: Any = load_part("data", str(spec.reader), key)
    reader = reader or importlib.import_module(f"kdflow.data.readers.{spec.reader}")
    splits: Splits = reader.read(spec, folder, downloads)
    if not isinstance(splits, Splits):
        raise UserError(f"{key}: {spec.reader}: returns {type(splits).__name__}, expected kdflow.data.Splits")
    _check(spec, splits, min_train_images)
    return write(name, spec.image_size, splits, out)


def write(name: str, image_size: int, splits: Splits, out: Path) -> str:
    """Write both splits to `out` as HDF5, atomically; returns the SHA-256 of images and labels, or of the list."""
    digest = _digest(splits)
    with files.atomic_write(out) as beside:
        _reserve(beside, splits, 2**20)  # a full disk raises before HDF5, which truncates the file, opens it
        with h5py.File(beside, "w", locking=False) as file:
            _reserve(beside, splits, 0)
            file.attrs["name"] = name
            file[CLASSES] = splits.class_names  # not an attribute: HDF5 limits those to 64 kB
            file.attrs["sha256"] = digest
            if splits.folder is not None:
                file.attrs["folder"] = os.fsencode(splits.folder)
                file.attrs["image_size"] = image_size
            for key in SPLITS:
                for part, values in vars(getattr(splits, key)).items():
                    file[f"{key}/{part}"] = values
    return digest


def _reserve(file: Path, splits: Splits, more: int) -> None:
    """Allocate the space of the splits, and `more` bytes, on disk: HDF5 may crash while it writes to a full disk."""
    size = sum(np.asarray(values).nbytes for key in SPLITS for values in vars(getattr(splits, key)).values())
    with file.open("r+b") as raw:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(raw.fileno(), 0, size + more)


def download_archive(spec: DatasetSource, downloads: Path, name: str, max_size: int) -> Path:
    """Download the archive `name` of a dataset to `downloads`, unless it is there with the right md5.

    Args:
        max_size: upper bound of the archive's size in bytes.

    Raises:
        UserError: the recipe names no url or no md5, or the download fails.
    """
    if spec.url is None or spec.md5 is None:
        raise UserError("recipes/datasets.yaml: url and md5 are both needed to download; or set data_folder")
    archive, source = downloads / name, DownloadSpec([spec.url], sha256="", size=max_size, md5=spec.md5)
    with files.exclusive_folder(downloads, f"the download of {name}", print), Display("prepare") as display:
        if not archive.exists() or source.mismatch(archive):
            try:
                download(source, archive, display)
            except UserError as error:
                raise UserError(f"{error}; or set data_folder to a local copy") from None
    return archive


def class_names(path: Path) -> list[str]:
    """Return the class names of a dataset file."""
    with h5py.File(path, "r", locking=False) as file:
        return _names(file)


def largest_class(path: Path) -> float:
    """Return the test accuracy, in percent, of always predicting the most frequent class."""
    with h5py.File(path, "r", locking=False) as file:
        counts = np.bincount(file["test/labels"][:])
    return float(100 * counts.max() / counts.sum())


def _names(file: h5py.File) -> list[str]:
    if CLASSES in file:
        return list(file[CLASSES].asstr()[:])
    return list(file.attrs["classes"])  # files of older versions


def load(path: Path, train_images: int, device: torch.device, workers: int = 0) -> Loaded:
    """Load a dataset file onto the device and verify its hash; of a list of files, that the files are there.

    Args:
        train_images: number of training images to use: the first of `balanced_order`, in file order.
        workers: number of processes that read image files.

    Raises:
        UserError: the file is missing, damaged or has another hash, or an image file is missing or has another size.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:  # another program may have a lock; the hash is checked
            kind = _kind(file)
            train, test = (kind(*(_read_dataset(file[key][field.name]) for field in fields(kind))) for key in SPLITS)
            splits = Splits(train, test, _names(file))
            files_at = None if kind is Split else _folder_and_size(file.attrs)
            expected = str(file.attrs["sha256"])
        actual = _digest(splits)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro prepare` makes it") from None
    except Exception as error:  # Damaged files raise exceptions of many types.
        raise UserError(f"{path}: damaged, or not a dataset file of kdflow ({one_line(error)})") from None
    if actual != expected:
        raise UserError(f"{path}: content differs from its hash {expected[:12]}...; `dvc repro -f prepare` mends it")
    if train_images < len(train.labels):
        train = train.take(np.sort(balanced_order(train.labels)[:train_images]))
    on_device = [_to_device(split, files_at, device, workers) for split in (train, test)]
    return Loaded(on_device[0], on_device[1], splits.class_names, expected)


def _kind(file: h5py.File) -> type[Split | FileList]:
    if "packed" in file["train"]:
        return ZipFileList
    return TarFileList if "offsets" in file["train"] else FileList if "folder" in file.attrs else Split


def _read_dataset(stored: h5py.Dataset) -> Any:
    return stored[:] if stored.shape else stored.asstr()[()]


def _folder_and_size(attributes: Any) -> tuple[Path, int]:
    return Path(os.fsdecode(attributes["folder"])), int(attributes["image_size"])


def balanced_order(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return an order of the images in which every prefix has equally many of each class, to within one image.

    It is random within a class and always the same, so a smaller subset is part of every larger one.
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))  # RandomState's stream is frozen by numpy
    rank = np.empty(len(labels), dtype=np.intp)  # position of each image within its class
    for label in np.unique(labels):
        of_class = shuffled[labels[shuffled] == label]
        rank[of_class] = np.arange(len(of_class))
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def _to_device(
    split: Split | FileList, files_at: tuple[Path, int] | None, device: torch.device, workers: int
) -> Images:
    labels = torch.from_numpy(split.labels).to(device)
    if isinstance(split, Split):
        # Stored as [n, h, w, 3]: viewed as [n, 3, h, w], this is the channels-last memory format without a copy.
        return ImageSet(torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2), labels)
    assert files_at is not None
    folder, image_size = files_at
    split.check(folder)
    return ImageFiles(folder, split, labels, image_size, workers)


def _check(spec: DatasetSource, splits: Splits, min_train_images: int | None) -> None:
    if len(splits.class_names) != spec.classes:
        raise UserError(f"{spec.reader}: {len(splits.class_names)} class names found, expected {spec.classes}")
    for key, count in (("train", spec.train_images), ("test", spec.test_images)):
        split: Split | FileList = getattr(splits, key)
        n = len(split.labels)
        enough = key == "train" and min_train_images is not None and min_train_images <= n < count
        hint = f"; train_images: {n} would use these" if key == "train" and 0 < n < count else ""
        shape = (n if enough else count, spec.image_size, spec.image_size, 3)
        if isinstance(split, Split) and (split.images.shape != shape or split.images.dtype != np.uint8):
            found = f"{split.images.dtype} {list(split.images.shape)}"
            raise UserError(f"{spec.reader}: {key} images: expected uint8 {list(shape)}, found {found}{hint}")
        if split.labels.shape != shape[:1]:
            raise UserError(f"{spec.reader}: {key} labels: expected {count}, found {list(split.labels.shape)}{hint}")
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
