"""A cache of a user's images at the size that training needs: decoding photos of 12 megapixels takes most of an epoch.

An image whose shorter side is longer is resized once and stored without loss as PNG. All others are copied as they are:
smaller ones, those with transparency or 16 bits, and files that cannot be read.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from kdflow.config import UserFolderRecipe
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.data.decode import decode_and_inspect
from kdflow.data.image_files import FileList, ZipFileList, map_in_threads


def needed_side(image_size: int, side: int, recipe: UserFolderRecipe) -> int:
    """Return the shorter side in px from which the smallest random crop of a square image is not enlarged.

    It is at least `side`, that of the test view.
    """
    smallest = 1.0 if recipe.area is None else recipe.area[0]
    return max(side, math.ceil(image_size / math.sqrt(smallest)))


def cache_images(folder: Path, images: FileList, cache: Path, side: int) -> FileList:
    """Write the images to the folder `cache`, unless they are there, and return their list.

    Each file is written atomically and has the time of its source, by which a later call knows that it is up to date.
    """
    paths = [_name(path) for path in images.paths.tolist()]
    archive = folder / images.archive if isinstance(images, ZipFileList) else None

    def write(index: int) -> int:
        target = cache / os.fsdecode(paths[index])
        time = _time(archive or folder / os.fsdecode(images.paths[index]))
        if _time(target) != time or time == 0:
            content = _content(folder, images, index)
            resized = _resized(content, side)
            with files.atomic_write(target) as part:
                part.write_bytes(content if resized is None else resized)
                os.utime(part, ns=(time, time))
        return 1

    map_in_threads("cache", write, range(len(paths)), len(paths))
    sizes = [os.stat(cache / os.fsdecode(path)).st_size for path in paths]  # noqa: PTH116
    return FileList(np.array(paths), np.array(sizes, dtype=np.int64), images.labels)


def _name(path: bytes) -> bytes:
    """Return the path within the cache: that of the image, or a hash of it if it leads out of its folder."""
    pure = PurePath(os.fsdecode(path))
    if pure.is_absolute() or ".." in pure.parts:
        return b"outside/" + hashlib.sha256(path).hexdigest().encode()
    return path


def _time(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _content(folder: Path, images: FileList, index: int) -> bytes:
    """Return the bytes of an image's file; none if it cannot be read, which is reported when it is measured."""
    try:
        file = images.open(folder, index)
        return file.read_bytes() if isinstance(file, Path) else file.getvalue()
    except (OSError, UserError):
        return b""


def _resized(content: bytes, side: int) -> bytes | None:
    """Return an image as PNG with a shorter side of `side` px; None if it is to be copied."""
    try:
        decoded = decode_and_inspect(io.BytesIO(content), ".", draft_side=2 * side)
    except UserError:
        return None
    image = decoded.image
    if decoded.transparent or decoded.colour16 or decoded.grey16_max is not None or min(image.size) <= side:
        return None
    short = min(image.size)
    width, height = (round(length * side / short) for length in image.size)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR).save(out, "PNG", compress_level=1)
    return out.getvalue()
