"""A user's folder of images as a dataset: split by class, with mean and standard deviation measured.

The files are listed, not copied. Each is read once, to measure the pixels and to find files that cannot be read.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdflow import data
from kdflow.config import BaseView, DatasetSource, PreparedDataset, Resize, UserFolder, UserFolderRecipe
from kdflow.core import files
from kdflow.core.errors import UserError, decode_filename
from kdflow.data import Splits
from kdflow.data.decode import formats, plugin_hint
from kdflow.data.folder_notes import folder_notes
from kdflow.data.image_files import FileList
from kdflow.data.measure import mean_std, measure, with_grey16_max
from kdflow.data.readers.image_folder import class_folders, is_system_name

TRAIN, TESTS = "train", ("val", "valid", "validation", "test")  # of any case
BROKEN_LIST = "broken.txt"
MAX_NAMES = 3  # file or folder names in one message


def prepare(source: UserFolder, recipe: UserFolderRecipe, out: Path, project: Path = Path()) -> PreparedDataset:
    """Write the images of `source` to `out` as a dataset file; returns the prepared dataset.

    The folder is relative to `project`. `recipe` (recipes/user_folder.yaml) gives base view and training; mean and
    standard deviation are those of the training images. broken.txt beside `out` lists the files that cannot be read.

    Raises:
        UserError: `source` is not a folder of classes, a class has too few images, or files cannot be read and
            `skip_broken` is not set.
    """
    folder = project / files.expand_home(source.folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    parts = _parts(folder)
    names, images, other_files = _list(folder, parts)
    side = source.side or round(source.image_size * recipe.side)
    base_view = BaseView(
        crop=0,
        flip=source.flip,
        resize=Resize(side=side, area=recipe.area),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    measured, broken = measure(folder, images, base_view, source.image_size)
    _report_broken(folder, broken, len(images.labels), out.parent / BROKEN_LIST, source)
    readable = np.flatnonzero([path not in broken for path in images.paths.tolist()])
    images, measured = images.take(readable), measured.take(readable)
    is_test = _test_images(folder, parts, images, names, source)
    train, test = images.take(np.flatnonzero(~is_test)), images.take(np.flatnonzero(is_test))
    base_view, measured = with_grey16_max(folder, images, base_view, source.image_size, measured)
    mean, std = mean_std(measured.sums[~is_test], source.image_size)
    notes = folder_notes(images, is_test, names, measured, std, other_files)
    for note in notes:
        print(f"{folder}: {note}")
    sha256 = data.write(source.name, source.image_size, Splits(train, test, names, folder.resolve()), out)
    return PreparedDataset(
        name=source.name,
        source=source,
        data=DatasetSource(
            reader="image_folder",
            classes=len(names),
            image_size=source.image_size,
            train_images=len(train.labels),
            test_images=len(test.labels),
        ),
        base_view=base_view.model_copy(update={"mean": mean, "std": std}),
        training=recipe.training,
        demo=False,
        sha256=sha256,
        class_names=tuple(names),
        left_out=tuple(map(decode_filename, broken)),
        notes=tuple(notes),
    )


def _report_broken(folder: Path, broken: dict[bytes, str], count: int, out: Path, source: UserFolder) -> None:
    """Write the files that cannot be read, of `count` images, to `out`.

    Raises:
        UserError: there are some, and `skip_broken` is not set.
    """
    out.unlink(missing_ok=True)
    if not broken:
        return
    files.write_text(out, "".join(f"{decode_filename(path)}: {reason}\n" for path, reason in broken.items()))
    first = ", ".join(map(decode_filename, list(broken)[:MAX_NAMES])) + (", ..." if len(broken) > MAX_NAMES else "")
    if not source.skip_broken:
        raise UserError(
            f"{folder}: {len(broken)} of {count:,} images cannot be read: {first} "
            f"({out} lists them); skip_broken: true, or --skip-broken, leaves them out"
        )
    print(f"{folder}: {len(broken)} images cannot be read and are left out: {first} ({out} lists them)")


def _parts(folder: Path) -> tuple[str, str] | None:
    """Return the names of the training and the test folder; None if `folder` has only classes."""
    found = [name for name in class_folders(folder) if name.lower() in (TRAIN, *TESTS)]
    train = [name for name in found if name.lower() == TRAIN]
    if not train:
        return None
    test = [name for name in found if name not in train]
    if len(train) > 1 or len(test) != 1:
        raise UserError(
            f"{folder}: expected {TRAIN}/ and one of {_folders(TESTS)}, found {_folders(found)}; rename a class of "
            "such a name"
        )
    return train[0], test[0]


def _folders(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)


def _list(folder: Path, parts: tuple[str, str] | None) -> tuple[list[str], FileList, Counter[str]]:
    """Return the class names, all image files with paths relative to `folder`, and the number of others by ending."""
    suffixes = tuple(suffix for of_format in formats().values() for suffix in of_format)
    classes = _classes(folder, parts)
    names = [*classes[0]]
    class_paths = [
        (folder / part / name, label)
        for part, folders in zip(parts or ("",), classes, strict=True)
        for label, name in enumerate(folders.values())
    ]
    visited: set[str] = set()
    other_files: Counter[str] = Counter()
    for path in (folder, *(folder / part for part in parts or ()), *(path for path, _ in class_paths)):
        if not _is_new(path, visited):
            raise UserError(f"{path}: is a link to another folder of this dataset")
    paths, labels = [], []
    for class_path, label in class_paths:
        found = _image_files(class_path, suffixes, visited, other_files)
        below = {Path(path).relative_to(class_path).parts[0] for path in found}
        if parts is None and len(below) > 1 and all((class_path / name).is_dir() for name in below):
            raise UserError(
                f"{class_path}: is not a class, its images are in {_folders(sorted(below)[:MAX_NAMES])}...; "
                f"expected <class>/*, or {TRAIN}/<class>/* and one of {_folders(TESTS)}"
            )
        paths += [os.fsencode(os.path.relpath(path, folder)) for path in found]
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{folder}: has no images ({', '.join(suffixes)}){plugin_hint(other_files)}")
    sizes = [_size(folder / os.fsdecode(path)) for path in paths]
    images = FileList(np.array(paths), np.array(sizes, dtype=np.int64), np.array(labels, dtype=np.int64))
    return names, images, other_files


def _classes(folder: Path, parts: tuple[str, str] | None) -> list[dict[str, str]]:
    """Return the class names of each part, which must be the same, with the names of their folders."""
    found: list[dict[str, str]] = []
    for part in parts or ("",):
        classes = class_folders(folder / part)
        if len(classes) < 2:
            raise UserError(
                f"{folder / part}: has {len(classes)} class folders, at least 2 are needed"
                " (<class>/*, or train/<class>/* and val/<class>/*)"
            )
        if parts and found and [*classes] != [*found[0]]:
            name = min(set(found[0]) ^ set(classes))
            raise UserError(f"{folder}: class {name} is in {parts[name not in found[0]]}/ only")
        found.append(classes)
    return found


def _image_files(folder: Path, suffixes: tuple[str, ...], visited: set[str], other_files: Counter[str]) -> list[str]:
    """Return the image files below a folder in torchvision's order, and count the others in `other_files`.

    Already visited folders and the hidden files and folders of `is_system_name` are left out.
    """
    images = []
    below = []
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in sorted(folders) if not is_system_name(name) and _is_new(Path(path, name), visited)
        ]
        below.append((path, sorted(name for name in names if not is_system_name(name))))
    for path, names in sorted(below):
        for name in names:
            if name.lower().endswith(suffixes):
                images.append(f"{path}/{name}")
            else:
                other_files[Path(name).suffix.lower()] += 1
    return images


def _is_new(folder: Path, visited: set[str]) -> bool:
    before = len(visited)
    visited.add(os.path.realpath(folder))
    return len(visited) > before


def _size(file: Path) -> int:
    """Return the size of a file in bytes; 0 for a broken link, which then cannot be read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _test_images(
    folder: Path, parts: tuple[str, str] | None, images: FileList, names: list[str], source: UserFolder
) -> npt.NDArray[np.bool_]:
    """Return which images are for testing: those of the test folder, or the first `val_share` of each class.

    Within a class, images are sorted by a hash of `split_seed` and path, so an added or removed file moves at most the
    image at the border.
    """
    paths = images.paths.tolist()
    if parts is not None:
        is_test = np.array([path.startswith(os.fsencode(f"{parts[1]}/")) for path in paths])
    else:
        is_test = np.zeros(len(paths), dtype=bool)
        for label in range(len(names)):
            of_class = np.flatnonzero(images.labels == label).tolist()
            of_class.sort(key=lambda index: _rank(source.split_seed, paths[index]))
            is_test[of_class[: max(1, round(source.val_share * len(of_class)))]] = True
    for label, name in enumerate(names):
        of_this = is_test[images.labels == label]
        if of_this.all() or not of_this.any():
            part = "training" if of_this.all() else "testing"
            raise UserError(f"{folder}: class {name}: {len(of_this)} images, none is left for {part}")
    return is_test


def _rank(split_seed: int, path: bytes) -> bytes:
    """Return the hash that orders the images of a class: the same for both Unicode forms of accents."""
    composed = os.fsencode(unicodedata.normalize("NFC", os.fsdecode(path)))
    return hashlib.sha256(b"%d\0%b" % (split_seed, composed)).digest()
