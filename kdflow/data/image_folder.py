"""A folder of image files, as torchvision's ImageFolder: `train/<class>/*` and `val/<class>/*`. ImageNet is kept so.

The files stay where they are and are never downloaded: what is written is a list of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from kdflow.config import Data
from kdflow.data import Splits
from kdflow.errors import UserError
from kdflow.stream import Listing

PARTS = ("train", "val")


def read(spec: Data, folder: Path | None, downloads: Path) -> Splits:  # noqa: ARG001 (a reader's signature)
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
    try:
        return find_classes(part)[0]  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UserError(f"data_folder: {part}: no class folders in it (expected {part.name}/<class>/)") from None


def _listing(folder: Path, part: str, classes: list[str]) -> Listing:
    numbers = {name: number for number, name in enumerate(classes)}
    found = make_dataset(str(folder / part), numbers, IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in found], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        kinds = ", ".join(IMG_EXTENSIONS)
        raise UserError(f"data_folder: {folder / part / classes[empty[0]]}: no images in it ({kinds})")
    before = len(f"{folder}{os.sep}")
    paths = np.array([os.fsencode(path[before:]) for path, _ in found])
    sizes = np.array([os.stat(path).st_size for path, _ in found], dtype=np.int64)  # noqa: PTH116
    return Listing(paths, sizes, labels)
