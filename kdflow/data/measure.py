"""Measurement of a user's images: each file is read once, in threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdflow.config import BaseView, Triple
from kdflow.core.errors import UserError, one_line
from kdflow.data.decode import decode_and_inspect
from kdflow.data.image_files import FileList, map_in_threads, transforms

MIN_STD = 1e-4  # the standard deviation of images of a single color is 0


@dataclass(frozen=True)
class Measured:
    """The measurements of n images.

    `sums` [n, 2, 3] has the sum and the sum of squares of each channel of the test view, `hashes` [n] the SHA-256 of
    the files in hex, `grey16_max` [n] the largest value of grey images of 16 bits, and -1 for others. `transparent` [n]
    and `colour16` [n] are those of `Decoded`.
    """

    sums: npt.NDArray[np.int64]
    hashes: npt.NDArray[Any]
    transparent: npt.NDArray[np.bool_]
    grey16_max: npt.NDArray[np.int64]
    colour16: npt.NDArray[np.bool_]

    def take(self, kept: npt.NDArray[np.intp]) -> Measured:
        """Return the measurements of the images `kept` only."""
        return Measured(*(getattr(self, field.name)[kept] for field in fields(self)))


def measure(folder: Path, images: FileList, base_view: BaseView, size: int) -> tuple[Measured, dict[bytes, str]]:
    """Read the test view of every image.

    Returns:
        The measurements, and the paths that cannot be read, with the reasons.
    """
    n = len(images.labels)
    measured = Measured(
        np.zeros((n, 2, 3), np.int64), np.zeros(n, "S64"), np.zeros(n, bool), np.full(n, -1), np.zeros(n, bool)
    )
    broken = _read(folder, images, base_view, size, range(n), measured)
    return measured, {images.paths[index]: broken[index] for index in sorted(broken)}


def with_grey16_max(
    folder: Path, images: FileList, base_view: BaseView, size: int, measured: Measured
) -> tuple[BaseView, Measured]:
    """Return the base view with the largest value of all grey images of 16 bits, and measurements on that scale."""
    indices = np.flatnonzero(measured.grey16_max >= 0)
    if not len(indices):
        return base_view, measured
    scaled = base_view.model_copy(update={"grey16_max": max(1, int(measured.grey16_max.max()))})
    again = Measured(*(getattr(measured, field.name).copy() for field in fields(measured)))
    broken = _read(folder, images, scaled, size, indices.tolist(), again)
    for index, reason in broken.items():  # it could be read a moment ago
        raise UserError(f"{folder / os.fsdecode(images.paths[index])}: {reason}")
    return scaled, again


def _read(
    folder: Path, images: FileList, base_view: BaseView, size: int, indices: Iterable[int], out: Measured
) -> dict[int, str]:
    """Measure the images `indices` into `out`; return the reasons for those that cannot be read."""
    transform = transforms(base_view, size, training=False)
    broken: dict[int, str] = {}

    def read(index: int) -> int:
        try:
            content = images.open(folder, index)
            stored = content.read_bytes() if isinstance(content, Path) else content.getvalue()
            decoded = decode_and_inspect(content, ".", grey16_max=base_view.grey16_max)
            out.hashes[index] = hashlib.sha256(stored).hexdigest().encode()
        except (UserError, OSError) as error:
            broken[index] = one_line(error).removeprefix(".: ")
            return 1
        view = transform(decoded.image).numpy().astype(np.int64)
        out.sums[index] = view.sum((1, 2)), (view**2).sum((1, 2))
        out.transparent[index], out.colour16[index] = decoded.transparent, decoded.colour16
        out.grey16_max[index] = -1 if decoded.grey16_max is None else decoded.grey16_max
        return 1

    items = list(indices)
    map_in_threads("images", read, items, len(items))
    return broken


def mean_std(sums: npt.NDArray[np.int64], size: int) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of each channel, of pixels from 0 to 1, rounded to four digits.

    A standard deviation is at least `MIN_STD`.
    """
    mean, square = sums.sum(0) / (len(sums) * size * size * 255.0 ** np.array([[1], [2]]))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    mean_r, mean_g, mean_b = (round(float(value), 4) for value in mean)
    std_r, std_g, std_b = (max(round(float(value), 4), MIN_STD) for value in std)
    return (mean_r, mean_g, mean_b), (std_r, std_g, std_b)
