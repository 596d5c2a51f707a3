"""A folder of image files in the layout of torchvision's ImageFolder: `train/<class>/*` and `val/<class>/*`.

The files are listed, not copied, and never downloaded.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError, decode_filename
from kdflow.data import Splits
from kdflow.data.image_files import FileList

PARTS = ("train", "val")
SYSTEM_NAMES = {  # in lower case
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:  # noqa: ARG001 (a reader's signature)
    """List the files of `folder`; its validation images are the test set."""
    if folder is None:
        raise UserError(
            "data_folder: is needed, since these images cannot be downloaded: a folder with train/ and val/"
        )
    if not folder.is_dir():
        raise UserError(f"data_folder: {folder}: no such folder")
    train, test = (_classes(folder / part) for part in PARTS)
    if [*train] != [*test]:
        name = min(set(train) ^ set(test))
        present, missing = PARTS if name in train else PARTS[::-1]
        raise UserError(f"data_folder: {folder}: class {name} is in {present}/ but not in {missing}/")
    return Splits(_list_files(folder, "train", train), _list_files(folder, "val", test), [*train], folder.resolve())


def _classes(part: Path) -> dict[str, str]:
    if not part.is_dir():
        raise UserError(f"data_folder: {part}: no such folder (expected train/<class>/ and val/<class>/)")
    names = class_folders(part)
    if not names:
        raise UserError(f"data_folder: {part}: has no class folders (expected {part.name}/<class>/)")
    return names


def class_folders(folder: Path) -> dict[str, str]:
    """Return the classes in `folder`, sorted by name, each with the name of its folder.

    The name of a class is that of its folder in Unicode's composed form (NFC): file systems differ in the form of
    accents. Hidden folders and those of systems are left out.

    Raises:
        UserError: a name is not UTF-8, or two folders differ in the form of their accents only.
    """
    classes: dict[str, str] = {}
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_system_name(entry.name)):
        decoded = decode_filename(os.fsencode(name))
        if decoded != name:
            raise UserError(f"{folder}: {decoded}/: the name of a class must be UTF-8")
        composed = unicodedata.normalize("NFC", name)
        if composed in classes:
            raise UserError(f"{folder}: two folders have the name {composed}/, with accents in two Unicode forms")
        classes[composed] = name
    return dict(sorted(classes.items()))


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden, or written by a system beside the user's files."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _list_files(folder: Path, part: str, classes: dict[str, str]) -> FileList:
    class_to_label = {name: label for label, name in enumerate(classes.values())}
    prefix = len(f"{folder / part}") - len(part)  # 0 for the folder ".", 1 for "/"
    images = [
        (path, label)
        for path, label in make_dataset(str(folder / part), class_to_label, IMG_EXTENSIONS, allow_empty=True)
        if not any(map(is_system_name, path[prefix:].split(os.sep)))  # noqa: PTH206 (slow)
    ]
    labels = np.array([label for _, label in images], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        suffixes = ", ".join(IMG_EXTENSIONS)
        raise UserError(f"data_folder: {folder / part / [*classes][empty[0]]}: has no images ({suffixes})")
    paths = np.array([os.fsencode(path[prefix:]) for path, _ in images])
    sizes = np.array([os.stat(path).st_size for path, _ in images], dtype=np.int64)  # noqa: PTH116
    return FileList(paths, sizes, labels)
