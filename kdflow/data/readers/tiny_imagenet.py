"""Tiny ImageNet-200 from the official zip, or from the folder that unpacking it gives; its val/ is the test set.

Classes are numbered in the order of their WordNet ids, as ImageFolder numbers them, and named by id and words.txt.
Nothing is unpacked to disk: the zip's members are read in place.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from stat import S_ISLNK

import numpy as np
import numpy.typing as npt

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError, one_line
from kdflow.core.progress import track
from kdflow.data import Split, Splits, archives, download_archive
from kdflow.data.image_files import decode

FOLDER = "tiny-imagenet-200"
ARCHIVE = FOLDER + ".zip"
MAX_MEMBER = 16 * 2**20  # bytes; words.txt, the largest member, has 2.7 MB
MAX_ARCHIVE = 2**28  # bytes; the official archive has 248 MB
AT_ONCE = 500  # images of one task

Read = Callable[[str], bytes]


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:
    """Read `folder`, else the archive, which is downloaded and must have the checksum `spec.md5`.

    Args:
        folder: `tiny-imagenet-200/` itself, or a folder that holds it or the archive `tiny-imagenet-200.zip`.
    """
    if folder is None:
        return _from_archive(download_archive(spec, downloads, ARCHIVE, MAX_ARCHIVE), spec)
    if not folder.is_dir():
        raise UserError(f"data_folder: {folder}: no such folder")
    inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not (inside / "wnids.txt").exists() and (folder / ARCHIVE).is_file():
        return _from_archive(folder / ARCHIVE, spec)
    names = [
        f"train/{within.name}/images/{name}"
        for within in sorted((inside / "train").glob("*"))
        if (within / "images").is_dir()
        for name in sorted(os.listdir(within / "images"))  # noqa: PTH208
    ]
    return _splits(f"data_folder: {inside}", names, lambda name: (inside / name).read_bytes(), spec)


def _from_archive(archive: Path, spec: DatasetSource) -> Splits:
    archives.check_md5(archive, spec.md5)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(archive, opened)
            return _splits(str(archive), sorted(members), lambda name: opened.read(members[name]), spec)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:  # encrypted; unknown packing
        raise UserError(f"{archive}: not the archive of Tiny ImageNet: {one_line(error)}") from None


def _members(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by their names within it."""
    guard = archives.MemberCheck(str(archive), FOLDER, MAX_MEMBER)
    named = {
        guard.add(info.filename, info.file_size, link=S_ISLNK(info.external_attr >> 16)): info
        for info in opened.infolist()
    }
    return {name: info for name, info in named.items() if not info.is_dir()}


def _splits(source: str, names: list[str], content: Read, spec: DatasetSource) -> Splits:
    def lines(name: str) -> list[list[str]]:
        try:
            return [line.split("\t") for line in content(name).decode().splitlines()]
        except (OSError, KeyError, UnicodeDecodeError):
            raise UserError(f"{source}: {name}: not there, or no text (expected {FOLDER}/ or {ARCHIVE})") from None

    ids = sorted(row[0] for row in lines("wnids.txt"))
    numbers = {name: number for number, name in enumerate(ids)}
    words = {row[0]: row[-1] for row in lines("words.txt")}
    train = [name for name in names if name.startswith("train/") and name.endswith(".JPEG")]
    said = lines("val/val_annotations.txt")
    labelled = [(name, name.split("/")[1]) for name in train]
    tested = [(f"val/images/{row[0]}", row[1] if len(row) > 1 else "") for row in said]
    for name, of_class in labelled + tested:
        if of_class not in numbers:
            raise UserError(f"{source}: {name}: class {of_class!r} is not in wnids.txt")
        if ".." in PurePosixPath(name).parts:
            raise UserError(f"{source}: val_annotations.txt: {name} is outside of {FOLDER}/")
    if len({name for name, _ in tested}) < len(tested):
        raise UserError(f"{source}: val_annotations.txt: an image stands there twice")
    # Before an hour is spent on reading them, and memory on more than there should be.
    for what, pairs, most in (("training", labelled, spec.train_images), ("validation", tested, spec.test_images)):
        if not 0 < len(pairs) <= most:
            raise UserError(f"{source}: {len(pairs):,} {what} images, {most:,} expected")
    splits = [
        Split(
            _decoded(source, [name for name, _ in pairs], content, spec.image_size, title),
            np.array([numbers[of_class] for _, of_class in pairs], dtype=np.int64),
        )
        for title, pairs in (("train", labelled), ("val", tested))
    ]
    return Splits(splits[0], splits[1], [" ".join([name, words.get(name, "")]).strip() for name in ids])


def _decoded(source: str, names: Sequence[str], content: Read, size: int, title: str) -> npt.NDArray[np.uint8]:
    images = np.empty((len(names), size, size, 3), dtype=np.uint8)

    def some(first: int) -> int:
        chunk = names[first : first + AT_ONCE]
        for place, name in enumerate(chunk, first):
            try:
                packed = content(name)
            except (OSError, KeyError):
                raise UserError(f"{source}: {name}: not there, but it has a label") from None
            image = decode(io.BytesIO(packed), f"{source}: {name}", largest=size * size)
            if image.size != (size, size):
                raise UserError(f"{source}: {name}: {image.width} x {image.height} pixels, {size} x {size} expected")
            images[place] = np.asarray(image)
        return len(chunk)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding lets go of Python's lock
        try:
            for _ in track(title, pool.map(some, range(0, len(names), AT_ONCE)), len(names)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images
