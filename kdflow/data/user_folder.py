"""A user's images as a dataset: split by class, with mean and standard deviation measured.

They are in a folder or in a ZIP archive, or a CSV or JSON file lists them. The files are not copied. Each is read once,
to measure the pixels and to find files that cannot be read.
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
from kdflow.data.cache import needed_side
from kdflow.data.decode import formats, plugin_hint
from kdflow.data.folder_notes import folder_notes
from kdflow.data.image_files import FileList
from kdflow.data.image_map import PARTS
from kdflow.data.listing import Listing, in_cache, listed_by_file, used_parts
from kdflow.data.measure import Measured, mean_std, measure, with_grey16_max
from kdflow.data.readers.image_folder import class_folders, is_system_name

BROKEN_LIST = "broken.txt"
MAX_NAMES = 3  # file or folder names in one message


def prepare(
    source: UserFolder,
    recipe: UserFolderRecipe,
    out: Path,
    project: Path = Path(),
    final_test: Path | None = None,
    cache: Path | None = None,
) -> PreparedDataset:
    """Write the images of `source` to `out` as a dataset file; returns the prepared dataset.

    If the folder has val/ and test/, and `source` does not choose one of them, those of test/ are written to
    `final_test` as the test images of a second dataset file. Without test images for it, this file is deleted.

    The folder is relative to `project`. `recipe` (recipes/user_folder.yaml) gives base view and training; mean and
    standard deviation are those of the training images. broken.txt beside `out` lists the files that cannot be read.
    With `source.cache`, the images are read from a cache in the folder `cache`; None: cache/ beside `out`.

    Raises:
        UserError: `source` is neither a folder of classes nor a file that lists images, a class has too few images, or
            files cannot be read and `skip_broken` is not set.
    """
    folder = project / files.expand_home(source.folder)
    listed = _listed(folder, source.test_part, with_final=final_test is not None)
    names, images, parts = listed.names, listed.images, listed.parts
    side = source.side or round(source.image_size * recipe.side)
    if source.cache:
        listed = in_cache(listed, cache or out.parent / "cache", needed_side(source.image_size, side, recipe))
        images = listed.images
    resize = Resize(side=side, area=recipe.area)
    base_view = BaseView(crop=0, flip=source.flip, resize=resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, measured, broken = _measure_readable(listed.folder, images, base_view, source, out.parent / BROKEN_LIST)
    given = None if listed.part_of is None else listed.part_of[[path not in broken for path in listed.paths]]
    part_of = _part_of_images(given, folder, parts, images, names, source)
    train, *tests = (images.take(np.flatnonzero(part_of == part)) for part in range(max(2, len(parts))))
    base_view, measured = with_grey16_max(listed.folder, images, base_view, source.image_size, measured)
    mean, std = mean_std(measured.sums[part_of == 0], source.image_size)
    notes = [*listed.notes, *folder_notes(images, part_of > 0, names, measured, std, listed.other_files)]
    for note in notes:
        print(f"{folder}: {note}")
    splits = [Splits(train, test, names, listed.folder.resolve()) for test in tests]
    sha256 = _write(source, splits, out, final_test)
    return PreparedDataset(
        name=source.name,
        source=source,
        data=DatasetSource(
            reader="image_folder",
            classes=len(names),
            image_size=source.image_size,
            train_images=len(train.labels),
            test_images=len(tests[0].labels),
        ),
        base_view=base_view.model_copy(update={"mean": mean, "std": std}),
        training=recipe.training,
        demo=False,
        sha256=sha256,
        class_names=tuple(names),
        left_out=tuple(map(decode_filename, broken)),
        notes=tuple(notes),
    )


def _write(source: UserFolder, splits: list[Splits], out: Path, final_test: Path | None) -> str:
    """Write the dataset file and that of the final test, if there is one; return the SHA-256 of the first."""
    sha256 = data.write(source.name, source.image_size, splits[0], out)
    if final_test is not None:
        final_test.unlink(missing_ok=True)
        for final in splits[1:]:
            data.write(source.name, source.image_size, final, final_test)
    return sha256


def _measure_readable(
    folder: Path, images: FileList, base_view: BaseView, source: UserFolder, broken_list: Path
) -> tuple[FileList, Measured, dict[bytes, str]]:
    """Return the images that can be read, their measurements, and the reasons for the others."""
    measured, broken = measure(folder, images, base_view, source.image_size)
    _report_broken(folder, broken, len(images.labels), broken_list, source)
    readable = np.flatnonzero([path not in broken for path in images.paths.tolist()])
    return images.take(readable), measured.take(readable), broken


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


def _parts(folder: Path, test_part: str | None, with_final: bool) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the folders of training, test and final test images, as far as they exist, and notes.

    ("",) is a folder of classes alone. The test set is val/, if it exists, or that of `test_part`. Images of a final
    test are those of test/ beside val/, if `with_final` is set and no `test_part` is chosen.
    """
    folders = class_folders(folder)
    found = {part: [name for name in folders if name.lower() in names] for part, names in PARTS.items()}
    train, val, test = found.values()
    if train and (max(map(len, found.values())) > 1 or not (val or test or len(folders) == 1)):
        others = [name for name in folders if name not in (*train, *val, *test)]
        raise UserError(
            f"{folder}: expected train/ alone, or with one of {_folders(PARTS['val'])}, with test/ or with both, found "
            f"{_folders([*train, *val, *test, *others[:MAX_NAMES]])}; rename a class of such a name"
        )
    if test_part is not None and not (train and found[test_part]):
        missing = test_part if train else "train"
        raise UserError(f"{folder}: has no {missing}/; test_part: {test_part}, or --test-part {test_part}, needs it")
    if not train:
        return ("",), []
    return used_parts(train, val, test, test_part, with_final=with_final)


def _listed(path: Path, test_part: str | None, *, with_final: bool) -> Listing:
    """List the images of a folder, or of a file that `image_map` reads."""
    if path.is_file():
        return listed_by_file(path, test_part, with_final=with_final)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    parts, notes = _parts(path, test_part, with_final)
    names, images, other_files = _list(path, parts)
    part_of = None
    if len(parts) > 1:
        part_of = np.zeros(len(images.labels), dtype=np.intp)
        for part, name in enumerate(parts):
            part_of[[file.startswith(os.fsencode(f"{name}/")) for file in images.paths.tolist()]] = part
    return Listing(path, names, images, parts, part_of, notes, other_files)


def _folders(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)


def images_below(folder: Path) -> list[str]:
    """Return the image files in a folder and below it, sorted by folder and name."""
    return _image_files(folder, _suffixes(), {os.path.realpath(folder)}, Counter())


def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for of_format in formats().values() for suffix in of_format)


def _list(folder: Path, parts: tuple[str, ...]) -> tuple[list[str], FileList, Counter[str]]:
    """Return the class names, all image files with paths relative to `folder`, and the number of others by ending."""
    suffixes = _suffixes()
    classes = _classes(folder, parts)
    names = [*classes[0]]
    class_paths = [
        (folder / part / name, label)
        for part, folders in zip(parts, classes, strict=True)
        for label, name in enumerate(folders.values())
    ]
    visited: set[str] = set()
    other_files: Counter[str] = Counter()
    for path in (folder, *(folder / part for part in parts if part), *(path for path, _ in class_paths)):
        if not _is_new(path, visited):
            raise UserError(f"{path}: is a link to another folder of this dataset")
    paths, labels = [], []
    for class_path, label in class_paths:
        found = _image_files(class_path, suffixes, visited, other_files)
        below = {Path(path).relative_to(class_path).parts[0] for path in found}
        if len(parts) == 1 and len(below) > 1 and all((class_path / name).is_dir() for name in below):
            raise UserError(
                f"{class_path}: is not a class, its images are in {_folders(sorted(below)[:MAX_NAMES])}...; "
                f"expected <class>/*, or train/<class>/*, alone or with val/<class>/* and test/<class>/*"
            )
        paths += [os.fsencode(os.path.relpath(path, folder)) for path in found]
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{folder}: has no images ({', '.join(suffixes)}){plugin_hint(other_files)}")
    sizes = [_size(folder / os.fsdecode(path)) for path in paths]
    images = FileList(np.array(paths), np.array(sizes, dtype=np.int64), np.array(labels, dtype=np.int64))
    return names, images, other_files


def _classes(folder: Path, parts: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the class names of each part, which must be the same, with the names of their folders."""
    found: list[dict[str, str]] = []
    for part in parts:
        hint = "; test_part: val, or --test-part val, does not read it" if len(found) == 2 else ""
        classes = class_folders(folder / part)
        if len(classes) < 2:
            raise UserError(
                f"{folder / part}: has {len(classes)} class folders, at least 2 are needed"
                f" (<class>/*, or train/<class>/* and val/<class>/*){hint}"
            )
        if found and [*classes] != [*found[0]]:
            name = min(set(found[0]) ^ set(classes))
            present, missing = (parts[0], part) if name in found[0] else (part, parts[0])
            raise UserError(f"{folder}: class {name} is in {present}/ but not in {missing}/{hint}")
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


def _part_of_images(
    given: npt.NDArray[np.intp] | None,
    folder: Path,
    parts: tuple[str, ...],
    images: FileList,
    names: list[str],
    source: UserFolder,
) -> npt.NDArray[np.intp]:
    """Return the part of each image: 0 for training, 1 for testing, 2 for the final test; those `given`, if they are.

    Without a test folder, the first `val_share` of each class are for testing. Within a class, images are sorted by a
    hash of `split_seed` and path, so an added or removed file moves at most the image at the border.
    """
    paths, part_of = images.paths.tolist(), np.zeros(len(images.labels), dtype=np.intp)
    if given is not None:
        part_of = given
    else:
        for label in range(len(names)):
            of_class = np.flatnonzero(images.labels == label).tolist()
            of_class.sort(key=lambda index: _rank(source.split_seed, paths[index]))
            part_of[of_class[: max(1, round(source.val_share * len(of_class)))]] = 1
    purposes = ("training", "testing", "the final test")[: max(2, len(parts))]
    for label, name in enumerate(names):
        of_this = part_of[images.labels == label]
        for part, purpose in enumerate(purposes):
            if part not in of_this:
                raise UserError(f"{folder}: class {name}: {len(of_this)} images, none is left for {purpose}")
    return part_of


def _rank(split_seed: int, path: bytes) -> bytes:
    """Return the hash that orders the images of a class: the same for both Unicode forms of accents."""
    composed = os.fsencode(unicodedata.normalize("NFC", os.fsdecode(path)))
    return hashlib.sha256(b"%d\0%b" % (split_seed, composed)).digest()
