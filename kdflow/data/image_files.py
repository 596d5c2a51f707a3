"""Images that stay in their files, of any size: listed once, then read by worker processes as they are wanted.

A worker decodes a file, seeds torch with what the epoch plan drew for this image, and applies torchvision's transforms.
So a view depends on neither the number of workers nor what was read before. Pixels travel as uint8.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
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
from kdflow.core.errors import UserError, one_line

ImageRequests = list[list[int]]
"""Images of one batch, each by its place among the files and the seed of its view."""


@dataclass(frozen=True)
class FileList:
    """Files of one split: paths [n] as bytes, relative to one folder; sizes [n] in bytes and labels [n], both int64."""

    paths: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def take(self, kept: npt.NDArray[np.intp]) -> FileList:
        """Some of the files."""
        return FileList(self.paths[kept], self.sizes[kept], self.labels[kept])

    def open(self, folder: Path, place: int) -> Path | io.BytesIO:
        """One of the files, to be decoded."""
        return folder / os.fsdecode(self.paths[place])

    def update(self, digest: hashlib._Hash) -> None:
        """Add path, size and label of every file."""
        rows = zip(self.paths.tolist(), self.sizes.tolist(), self.labels.tolist(), strict=True)
        digest.update(b"".join(b"%b\0%d\0%d\n" % row for row in rows))

    def check(self, folder: Path) -> None:
        """Look whether the files are in `folder` with their sizes; nothing is read.

        Raises:
            UserError: the first one that is not.
        """
        for path, size in zip(self.paths.tolist(), self.sizes.tolist(), strict=True):
            file = os.path.join(folder, os.fsdecode(path))  # noqa: PTH118 (a million times: pathlib takes half a minute)
            try:
                found = os.stat(file).st_size  # noqa: PTH116
            except OSError as error:
                raise UserError(f"{file}: {error.strerror}, but it was listed; {RELIST_HINT}") from None
            if found != size:
                raise UserError(f"{file}: has {found} bytes, {size} when it was listed; {RELIST_HINT}")


@dataclass(frozen=True)
class TarFileList(FileList):
    """Files of one split that are still in a tar: `archive`, relative to the folder, and their offsets [n] in it.

    Paths, sizes and labels are those of the files once unpacked, and so is the hash.
    """

    offsets: npt.NDArray[np.int64]
    archive: str

    def take(self, kept: npt.NDArray[np.intp]) -> TarFileList:
        """Some of the files."""
        return TarFileList(self.paths[kept], self.sizes[kept], self.labels[kept], self.offsets[kept], self.archive)

    def open(self, folder: Path, place: int) -> Path | io.BytesIO:
        """One of the files, to be decoded."""
        with (folder / self.archive).open("rb", buffering=0) as file:
            file.seek(int(self.offsets[place]))
            return io.BytesIO(file.read(int(self.sizes[place])))

    def check(self, folder: Path) -> None:
        """Look whether the archive is in `folder` and long enough.

        Raises:
            UserError: it is not.
        """
        file = folder / self.archive
        end = int((self.offsets + self.sizes).max())
        try:
            found = file.stat().st_size
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}, but its images were listed; {RELIST_HINT}") from None
        if found < end:
            raise UserError(f"{file}: has {found} bytes, at least {end} when it was listed; {RELIST_HINT}")


RELIST_HINT = "`dvc repro -f prepare`, or `kdflow distill` given again, lists the folder anew"


@dataclass(frozen=True)
class ImageFiles:
    """One split as files, with its labels on the device; `workers` processes read them, 0: this one does."""

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

    def for_training(
        self, batches: Iterable[ImageRequests], base_view: BaseView
    ) -> Iterator[UInt8[Tensor, "_b 3 _size _size"]]:
        """The views of each batch, cropped and flipped at random by each image's seed."""
        return self._read(batches, base_view, training=True)

    def for_testing(
        self, batch_size: int, base_view: BaseView, rows: slice
    ) -> Iterator[UInt8[Tensor, "_b 3 _size _size"]]:
        """Some of the images in order, resized, their centres."""
        places = [[place, 0] for place in range(rows.start, rows.stop)]
        batches = (places[start : start + batch_size] for start in range(0, len(places), batch_size))
        return self._read(batches, base_view, training=False)

    def _read(self, batches: Iterable[ImageRequests], base_view: BaseView, *, training: bool) -> Iterator[Tensor]:
        # A loader keeps its processes for the next pass: to start some takes a few tenths of a second. One that is in
        # the middle of a pass is not here, so two passes at once do not meet.
        loader = self._idle.pop((training, base_view), None)
        if loader is None:
            loader = self._loader(base_view, training=training)
        assert isinstance(loader.sampler, _Batches)
        loader.sampler.wanted = batches
        try:
            for pixels in loader:
                if isinstance(pixels, UserError):
                    raise pixels
                yield pixels.to(self.labels.device, non_blocking=True)
        finally:
            self._idle[training, base_view] = loader

    def _loader(self, base_view: BaseView, *, training: bool) -> _Loader:
        return DataLoader(
            _Decoded(self.folder, self.files, transforms(base_view, self.image_size, training=training)),
            sampler=_Batches(),
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.labels.device.type == "cuda",
            generator=torch.Generator(),  # of its own: else it draws from the global one
            # Forked, a worker ends with the run; from Python's fork server it would outlive a run that was killed.
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
        )


_Loader: TypeAlias = "DataLoader[Tensor | UserError]"


class _Batches:
    """What the next pass wants; a batch is one item, so that a worker makes all of it."""

    wanted: Iterable[ImageRequests] = ()

    def __iter__(self) -> Iterator[ImageRequests]:
        return iter(self.wanted)


class _Decoded(Dataset[Tensor | UserError]):
    """What a worker does: batches of views [b, 3, size, size] uint8 on the CPU."""

    def __init__(self, folder: Path, files: FileList, transform: nn.Module) -> None:
        self.folder, self.files, self.transform = folder, files, transform

    def __getitem__(self, wanted: ImageRequests) -> Tensor | UserError:
        try:
            with torch.random.fork_rng(devices=[]):
                return torch.stack([self._view(place, seed) for place, seed in wanted])
        except UserError as error:
            return error  # raised here, a worker's traceback would become part of its text

    def _view(self, place: int, seed: int) -> Tensor:
        image = decode(self.files.open(self.folder, place), str(self.folder / os.fsdecode(self.files.paths[place])))
        torch.default_generator.manual_seed(seed)
        view: Tensor = self.transform(image)
        return view


@cache
def formats() -> dict[str, list[str]]:
    """The formats that Pillow reads by itself, each with its files' endings: EPS starts another program, stubs none."""
    Image.init()
    other = {"EPS", "WMF", "BUFR", "GRIB", "HDF5"}
    found: dict[str, list[str]] = {name: [] for name in Image.OPEN if name not in other}
    for ending, name in sorted(Image.registered_extensions().items()):
        if name in found:
            found[name].append(ending)
    return found


def decode(file: Path | io.BytesIO, name: str | None = None, largest: int | None = None) -> Image.Image:
    """Read an image, of whatever ending, as RGB: grey of 8 and 16 bits, palette and CMYK become that.

    Raises:
        UserError: it is none, is cut short, or would have more pixels than `largest`, else than Pillow thinks safe.
    """
    try:
        with Image.open(file, formats=list(formats())) as image:
            most = largest or Image.MAX_IMAGE_PIXELS or sys.maxsize
            if image.width * image.height > most:
                raise UserError(f"{image.width} x {image.height} pixels, at most {most:,} are allowed")
            if image.mode in ("I", "F"):
                raise UserError(f"pixels of 32 bits (Pillow's mode {image.mode}), of which nothing says what is white")
            if image.mode.startswith("I;16"):  # convert would cut off at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # a damaged file fails in any way it likes
        raise UserError(f"{name or file}: cannot be read as an image: {one_line(error)}") from None


def transforms(base_view: BaseView, size: int, *, training: bool) -> nn.Module:
    """From an image of any size to a view [3, size, size] uint8.

    Raises:
        UserError: the settings do not say how.
    """
    from torchvision.transforms import v2  # 160 MB and a second that only images in files need

    resize = base_view.resize
    if resize is None:
        raise UserError("recipes/datasets.yaml: views.resize is needed: these images are files of any size")
    steps: list[nn.Module] = [v2.Resize(resize.side), v2.CenterCrop(size)]
    if training and resize.area is not None:
        steps = [v2.RandomResizedCrop(size, scale=resize.area)]
    if training and base_view.flip:
        steps.append(v2.RandomHorizontalFlip())
    transform: nn.Module = v2.Compose([*steps, v2.PILToTensor()])
    return transform
