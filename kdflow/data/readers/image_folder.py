"""A folder of image files in the layout of torchvision's ImageFolder: `train/<class>/*` and `val/<class>/*`.

The files are listed, not copied, and never downloaded.
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
    """List the files of `folder`; its validation images are the test set."""
    if folder is None:
        raise UserError(
            "data_folder: is needed, since these images cannot be downloaded: a folder with train/ and val/"
        )
    if not folder.is_dir():
        raise UserError(f"data_folder: {folder}: no such folder")
    train, test = (_classes(folder / part) for part in PARTS)
    if train != test:
        name = min(set(train) ^ set(test))
        present, missing = PARTS if name in train else PARTS[::-1]
        raise UserError(f"data_folder: {folder}: class {name} is in {present}/ but not in {missing}/")
    return Splits(_list_files(folder, "train", train), _list_files(folder, "val", train), train, folder.resolve())


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise UserError(f"data_folder: {part}: no such folder (expected train/<class>/ and val/<class>/)")
    names = class_folders(part)
    if not names:
        raise UserError(f"data_folder: {part}: has no class folders (expected {part.name}/<class>/)")
    return names


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder` that are not hidden.

    Raises:
        UserError: a name is not UTF-8.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    for name, decoded in ((name, decode_filename(os.fsencode(name))) for name in names):
        if decoded != name:
            raise UserError(f"{folder}: {decoded}/: the name of a class must be UTF-8")
    return names


def _list_files(folder: Path, part: str, classes: list[str]) -> FileList:
    class_to_label = {name: label for label, name in enumerate(classes)}
    images = make_dataset(str(folder / part), class_to_label, IMG_EXTENSIONS, allow_empty=True)
    labels = np.array([label for _, label in images], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        suffixes = ", ".join(IMG_EXTENSIONS)
        raise UserError(f"data_folder: {folder / part / classes[empty[0]]}: has no images ({suffixes})")
    prefix = len(f"{folder / part}") - len(part)  # 0 for the folder ".", 1 for "/"
    paths = np.array([os.fsencode(path[prefix:]) for path, _ in images])
    sizes = np.array([os.stat(path).st_size for path, _ in images], dtype=np.int64)  # noqa: PTH116
    return FileList(paths, sizes, labels)
