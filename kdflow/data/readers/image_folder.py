"""A folder of image files, as torchvision's ImageFolder: `train/<class>/*` and `val/<class>/*`. ImageNet is kept so.

The files stay where they are and are never downloaded: what is written is a list of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError, decode_filename
from kdflow.data import Splits
from kdflow.data.image_files import FileList

PARTS = ("train", "val")


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:  # noqa: ARG001 (a reader's signature)
    """List `folder`; its validation images are the test set."""
    if folder is None:
        raise UserError("data_folder: not given; these images are not downloaded: name a folder with train/ and val/")
    if not folder.is_dir():
        raise UserError(f"data_folder: {folder}: no such folder")
    train, test = (_classes(folder / part) for part in PARTS)
    if train != test:
        odd = min(set(train) ^ set(test))
        here, there = PARTS if odd in train else PARTS[::-1]
        raise UserError(f"data_folder: {folder}: class {odd} is in {here}/ but not in {there}/")
    return Splits(_listing(folder, "train", train), _listing(folder, "val", train), train, folder.resolve())


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise UserError(f"data_folder: {part}: no such folder (expected train/<class>/ and val/<class>/)")
    names = class_folders(part)
    if not names:
        raise UserError(f"data_folder: {part}: no class folders in it (expected {part.name}/<class>/)")
    return names


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones apart, in order.

    Raises:
        UserError: one is no UTF-8, so no name of a class.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    for name, shown in ((name, decode_filename(os.fsencode(name))) for name in names):
        if shown != name:
            raise UserError(f"{folder}: {shown}/: the name of a class must be UTF-8")
    return names


def _listing(folder: Path, part: str, classes: list[str]) -> FileList:
    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(folder / part), numbers, IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in found], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        kinds = ", ".join(IMG_EXTENSIONS)
        raise UserError(f"data_folder: {folder / part / classes[empty[0]]}: no images in it ({kinds})")
    before = len(f"{folder / part}") - len(part)  # of "." nothing, of "/" itself
    paths = np.array([os.fsencode(path[before:]) for path, _ in found])
    sizes = np.array([os.stat(path).st_size for path, _ in found], dtype=np.int64)  # noqa: PTH116
    return FileList(paths, sizes, labels)
