"""Images of any size that stay in their files: listed once, then read by worker processes.

A worker decodes a file, seeds torch with the image's seed of the epoch plan, and applies torchvision's transforms, so
views depend neither on the number of workers nor on the order of reading. Pixels are passed on as uint8.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdflow.config import BaseView
from kdflow.core.errors import UserError
from kdflow.core.machine import usable_cpus, use_short_socket_folder
from kdflow.core.progress import track
from kdflow.data.decode import decode
from kdflow.data.loader_workers import fit_workers, share, worker_options

SILENT_SECONDS = 600  # a worker that reads no batch for so long has failed

ImageRequests = list[list[int]]
"""The images of one batch: pairs of index in the file list and seed of the view."""


@dataclass(frozen=True)
class FileList:
    """The files of one split: paths [n] as bytes, relative to a folder; sizes in bytes and labels, both [n] int64."""

    paths: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def take(self, kept: npt.NDArray[np.intp]) -> FileList:
        """Return the list with the files `kept` only."""
        return FileList(self.paths[kept], self.sizes[kept], self.labels[kept])

    def open(self, folder: Path, index: int) -> Path | io.BytesIO:
        """Return one of the files, for `decode`."""
        return folder / os.fsdecode(self.paths[index])

    def update(self, digest: hashlib._Hash) -> None:
        """Add path, size and label of every file to `digest`."""
        rows = zip(self.paths.tolist(), self.sizes.tolist(), self.labels.tolist(), strict=True)
        digest.update(b"".join(b"%b\0%d\0%d\n" % row for row in rows))

    def check(self, folder: Path) -> None:
        """Check that the files are in `folder` and have their sizes; no file is read.

        Raises:
            UserError: a file is missing or has another size.
        """
        for path, size in zip(self.paths.tolist(), self.sizes.tolist(), strict=True):
            file = os.path.join(folder, os.fsdecode(path))  # noqa: PTH118 (pathlib takes 30 s for a million files)
            try:
                actual = os.stat(file).st_size  # noqa: PTH116
            except OSError as error:
                raise UserError(f"{file}: {error.strerror}, but it was listed; {RELIST_HINT}") from None
            if actual != size:
                raise UserError(f"{file}: has {actual} bytes, {size} when it was listed; {RELIST_HINT}")


@dataclass(frozen=True)
class TarFileList(FileList):
    """The files of one split inside the tar `archive`, relative to a folder, with their offsets [n] in it.

    Paths, sizes, labels and hash are the same as those of the unpacked files.
    """

    offsets: npt.NDArray[np.int64]
    archive: str

    def take(self, kept: npt.NDArray[np.intp]) -> TarFileList:
        """Return the list with the files `kept` only."""
        return TarFileList(self.paths[kept], self.sizes[kept], self.labels[kept], self.offsets[kept], self.archive)

    def open(self, folder: Path, index: int) -> Path | io.BytesIO:
        """Return one of the files, for `decode`."""
        with (folder / self.archive).open("rb", buffering=0) as file:
            file.seek(int(self.offsets[index]))
            return io.BytesIO(file.read(int(self.sizes[index])))

    def check(self, folder: Path) -> None:
        """Check that the archive is in `folder` and long enough.

        Raises:
            UserError: the archive is missing or too short.
        """
        _check_length(folder / self.archive, int((self.offsets + self.sizes).max()))


@dataclass(frozen=True)
class ZipFileList(FileList):
    """The files of one split inside the ZIP `archive`, relative to a folder.

    `offsets` [n] are those of the files' headers, `packed` [n] the bytes of their content as stored, and `deflated` [n]
    whether it is compressed. Paths, sizes, labels and hash are the same as those of the unpacked files.
    """

    offsets: npt.NDArray[np.int64]
    packed: npt.NDArray[np.int64]
    deflated: npt.NDArray[np.bool_]
    archive: str

    def take(self, kept: npt.NDArray[np.intp]) -> ZipFileList:
        """Return the list with the files `kept` only."""
        return ZipFileList(
            self.paths[kept],
            self.sizes[kept],
            self.labels[kept],
            self.offsets[kept],
            self.packed[kept],
            self.deflated[kept],
            self.archive,
        )

    def open(self, folder: Path, index: int) -> io.BytesIO:
        """Return one of the files, for `decode`.

        Raises:
            UserError: its content is damaged or has another size.
        """
        size = int(self.sizes[index])
        with (folder / self.archive).open("rb", buffering=0) as file:
            file.seek(int(self.offsets[index]))
            header = file.read(ZIP_HEADER)
            # The lengths of name and extra field may differ from those in the archive's directory.
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            file.seek(int(self.offsets[index]) + ZIP_HEADER + lengths)
            content = file.read(int(self.packed[index]))
        if self.deflated[index]:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error:
                content = b""
        if header[:4] != b"PK\3\4" or len(content) != size:
            name = os.fsdecode(self.paths[index])
            raise UserError(f"{folder / self.archive}: {name}: damaged, or the archive has changed; {RELIST_HINT}")
        return io.BytesIO(content)

    def check(self, folder: Path) -> None:
        """Check that the archive is in `folder` and long enough.

        Raises:
            UserError: the archive is missing or too short.
        """
        _check_length(folder / self.archive, int((self.offsets + self.packed).max()))


def _check_length(archive: Path, end: int) -> None:
    """Check that an archive has at least `end` bytes."""
    try:
        actual = archive.stat().st_size
    except OSError as error:
        raise UserError(f"{archive}: {error.strerror}, but its images were listed; {RELIST_HINT}") from None
    if actual < end:
        raise UserError(f"{archive}: has {actual} bytes, at least {end} when it was listed; {RELIST_HINT}")


ZIP_HEADER = 30  # bytes of the header of a file, before its name
RELIST_HINT = "`dvc repro -f prepare`, or the same `kdflow distill`, lists the folder again"


@dataclass(frozen=True)
class ImageFiles:
    """One split as files, with its labels on the device. `workers` processes read them; 0 reads in this process."""

    folder: Path
    files: FileList
    labels: Int64[Tensor, " n"]
    image_size: int
    workers: int
    _idle: dict[tuple[bool, BaseView], DataLoader[Tensor | UserError]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Int64[Tensor, " k"]) -> ImageFiles:
        """Return the images `index` only; `index` is on the CPU."""
        labels = self.labels[index.to(self.labels.device)]
        return ImageFiles(self.folder, self.files.take(index.numpy()), labels, self.image_size, self.workers)

    def for_training(
        self, batches: Iterable[ImageRequests], base_view: BaseView
    ) -> Iterator[UInt8[Tensor, "_b 3 _size _size"]]:
        """Yield the views of each batch, cropped and flipped at random with each image's seed."""
        return self._read(batches, base_view, training=True)

    def for_testing(
        self, batch_size: int, base_view: BaseView, rows: slice
    ) -> Iterator[UInt8[Tensor, "_b 3 _size _size"]]:
        """Yield batches of the images `rows`, in order, resized and center-cropped."""
        requests = [[index, 0] for index in range(rows.start, rows.stop)]
        batches = (requests[start : start + batch_size] for start in range(0, len(requests), batch_size))
        return self._read(batches, base_view, training=False)

    def _read(self, batches: Iterable[ImageRequests], base_view: BaseView, *, training: bool) -> Iterator[Tensor]:
        # A loader keeps its processes for the next pass, since starting them takes a few tenths of a second. A loader
        # in use is not in `_idle`, so that two passes at the same time use different ones.
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return
        loader = self._idle.pop((training, base_view), None)
        if loader is None:
            loader = self._loader(base_view, 3 * len(first) * self.image_size**2, training=training)
        assert isinstance(loader.sampler, _Batches)
        loader.sampler.batches = chain([first], batches)
        try:
            for pixels in loader:
                if isinstance(pixels, UserError):
                    raise pixels
                yield pixels.to(self.labels.device, non_blocking=True)
        finally:
            self._idle[training, base_view] = loader

    def _loader(self, base_view: BaseView, batch_bytes: int, *, training: bool) -> _Loader:
        workers, prefetch = fit_workers(self.workers, batch_bytes)
        use_short_socket_folder()  # the workers' sockets
        return DataLoader(
            _Views(
                self.folder,
                self.files,
                transforms(base_view, self.image_size, training=training),
                base_view.grey16_max,
            ),
            sampler=_Batches(),
            batch_size=None,
            **worker_options(workers),
            prefetch_factor=prefetch,
            timeout=SILENT_SECONDS if workers else 0,
            persistent_workers=workers > 0,
            pin_memory=self.labels.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global generator
        )


_Loader: TypeAlias = "DataLoader[Tensor | UserError]"


class _Batches:
    """The sampler: yields the batches of the next pass. A batch is one item, so that one worker reads all of it."""

    batches: Iterable[ImageRequests] = ()

    def __iter__(self) -> Iterator[ImageRequests]:
        return iter(self.batches)


class _Views(Dataset[Tensor | UserError]):
    """Batches of views [b, 3, size, size] uint8 on the CPU, read in a worker."""

    def __init__(self, folder: Path, files: FileList, transform: nn.Module, grey16_max: int | None) -> None:
        self.folder, self.files, self.transform, self.grey16_max = folder, files, transform, grey16_max

    def __getitem__(self, requests: ImageRequests) -> Tensor | UserError:
        try:
            with torch.random.fork_rng(devices=[]):
                return share(torch.stack([self._view(index, seed) for index, seed in requests]))
        except UserError as error:
            return error  # raised in a worker, its text would include the worker's traceback

    def _view(self, index: int, seed: int) -> Tensor:
        name = str(self.folder / os.fsdecode(self.files.paths[index]))
        image = decode(self.files.open(self.folder, index), name, grey16_max=self.grey16_max)
        torch.default_generator.manual_seed(seed)
        view: Tensor = self.transform(image)
        return view


def map_in_threads(title: str, task: Callable[[int], int], items: Sequence[int], count: int) -> None:
    """Run `task`, which returns its number of images, on all items in threads, and show the progress towards `count`.

    Threads decode in parallel: Pillow releases the GIL.
    """
    with ThreadPoolExecutor(usable_cpus()) as pool:
        try:
            for _ in track(title, pool.map(task, items), count):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _CropLongSide(nn.Module):
    """Crops the centre of an image whose long side is over 4 times the shorter one.

    The resized image then has at most 4 times the pixels of its shorter side squared. The centre that is cropped after
    resizing is inside; the images of ordinary cameras are not changed.
    """

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image, or its centre with one side 3 times the other: resizing reads pixels beside the crop."""
        short, long = sorted(image.size)
        if long <= 4 * short:
            return image
        width, height = (min(side, 3 * short) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


def transforms(base_view: BaseView, size: int, *, training: bool) -> nn.Module:
    """Return the transform from an image of any size to a view [3, size, size] uint8.

    Raises:
        UserError: `base_view` has no `resize`.
    """
    from torchvision.transforms import v2  # takes 1 s and 160 MB, which only image files need

    resize = base_view.resize
    if resize is None:
        raise UserError("recipes/datasets.yaml: base_view.resize is needed: these images are files of any size")
    steps: list[nn.Module] = [_CropLongSide(), v2.Resize(resize.side), v2.CenterCrop(size)]
    if training and resize.area is not None:
        steps = [v2.RandomResizedCrop(size, scale=resize.area)]
    if training and base_view.flip:
        steps.append(v2.RandomHorizontalFlip())
    transform: nn.Module = v2.Compose([*steps, v2.PILToTensor()])
    return transform
