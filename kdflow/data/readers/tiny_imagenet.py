"""Tiny ImageNet-200 from the official zip or its unpacked folder; its val/ is the test set.

Classes are sorted by WordNet id, as in torchvision's ImageFolder, and named by id and words.txt. Nothing is unpacked to
disk.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from stat import S_ISLNK

import numpy as np
import numpy.typing as npt

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError, one_line
from kdflow.data import Split, Splits, archives, download_archive
from kdflow.data.decode import decode
from kdflow.data.image_files import map_in_threads

FOLDER = "tiny-imagenet-200"
ARCHIVE = FOLDER + ".zip"
MAX_MEMBER = 16 * 2**20  # bytes; words.txt, the largest member, has 2.7 MB
MAX_ARCHIVE = 2**28  # bytes; the official archive has 248 MB
CHUNK = 500  # images per task of the thread pool

ReadMember = Callable[[str], bytes]


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:
    """Read `folder`, or download the archive; the md5 of an archive must be `spec.md5`.

    Args:
        folder: `tiny-imagenet-200/`, or a folder with it or with the archive `tiny-imagenet-200.zip`.
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
        with zipfile.ZipFile(archive) as file:
            members = _members(archive, file)
            return _splits(str(archive), sorted(members), lambda name: file.read(members[name]), spec)
    except (
        zipfile.BadZipFile,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # also encrypted, or an unknown compression
        raise UserError(f"{archive}: not the archive of Tiny ImageNet: {one_line(error)}") from None


def _members(archive: Path, file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's files by their names relative to `FOLDER`."""
    check = archives.MemberCheck(str(archive), FOLDER, MAX_MEMBER)
    members = {
        check(info.filename, info.file_size, link=S_ISLNK(info.external_attr >> 16)): info for info in file.infolist()
    }
    return {name: info for name, info in members.items() if not info.is_dir()}


def _splits(source: str, names: list[str], read_member: ReadMember, spec: DatasetSource) -> Splits:
    """Check the lists of the dataset and decode its images.

    Args:
        source: the archive or folder, for messages.
        names: the names of all files.
    """

    def lines(name: str) -> list[list[str]]:
        try:
            return [line.split("\t") for line in read_member(name).decode().splitlines()]
        except (OSError, KeyError, UnicodeDecodeError):
            raise UserError(f"{source}: {name}: missing, or not text (expected {FOLDER}/ or {ARCHIVE})") from None

    ids = sorted(row[0] for row in lines("wnids.txt"))
    class_to_label = {name: label for label, name in enumerate(ids)}
    words = {row[0]: row[-1] for row in lines("words.txt")}
    train = [name for name in names if name.startswith("train/") and name.endswith(".JPEG")]
    annotations = lines("val/val_annotations.txt")
    train_pairs = [(name, name.split("/")[1]) for name in train]
    val_pairs = [(f"val/images/{row[0]}", row[1] if len(row) > 1 else "") for row in annotations]
    for name, wnid in train_pairs + val_pairs:
        if wnid not in class_to_label:
            raise UserError(f"{source}: {name}: class {wnid!r} is not in wnids.txt")
        if ".." in PurePosixPath(name).parts:
            raise UserError(f"{source}: val_annotations.txt: {name} is outside of {FOLDER}/")
    if len({name for name, _ in val_pairs}) < len(val_pairs):
        raise UserError(f"{source}: val_annotations.txt: has an image twice")
    # Checked before the images are decoded, which takes long and as much memory as there are images.
    for what, pairs, count in (
        ("training", train_pairs, spec.train_images),
        ("validation", val_pairs, spec.test_images),
    ):
        if not 0 < len(pairs) <= count:
            raise UserError(f"{source}: {len(pairs):,} {what} images, {count:,} expected")
    splits = [
        Split(
            _decode_images(source, [name for name, _ in pairs], read_member, spec.image_size, title),
            np.array([class_to_label[wnid] for _, wnid in pairs], dtype=np.int64),
        )
        for title, pairs in (("train", train_pairs), ("val", val_pairs))
    ]
    return Splits(splits[0], splits[1], [" ".join([name, words.get(name, "")]).strip() for name in ids])


def _decode_images(
    source: str, names: Sequence[str], read_member: ReadMember, size: int, title: str
) -> npt.NDArray[np.uint8]:
    images = np.empty((len(names), size, size, 3), dtype=np.uint8)

    def decode_chunk(first: int) -> int:
        chunk = names[first : first + CHUNK]
        for index, name in enumerate(chunk, first):
            try:
                content = read_member(name)
            except (OSError, KeyError):
                raise UserError(f"{source}: {name}: missing, but it has a label") from None
            image = decode(io.BytesIO(content), f"{source}: {name}", max_pixels=size * size)
            if image.size != (size, size):
                raise UserError(f"{source}: {name}: {image.width} x {image.height} pixels, {size} x {size} expected")
            images[index] = np.asarray(image)
        return len(chunk)

    map_in_threads(title, decode_chunk, range(0, len(names), CHUNK), len(names))
    return images
