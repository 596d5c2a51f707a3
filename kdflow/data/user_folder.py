"""Images of one's own: any folder of classes becomes a dataset, split and measured here.

The files stay where they are; what is written is a list of them. All are read once, for mean and standard deviation of
what the model will see, and to find those that cannot be read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdflow import data
from kdflow.config import BaseView, DatasetSource, PreparedDataset, Resize, Triple, UserFolder, UserFolderRecipe
from kdflow.core import files
from kdflow.core.errors import UserError, decode_filename, one_line
from kdflow.core.progress import track
from kdflow.data import Splits
from kdflow.data.image_files import FileList, decode, formats, transforms
from kdflow.data.readers.image_folder import class_folders

TRAIN, TESTS = "train", ("val", "valid", "validation", "test")  # in small letters or large
BROKEN = "broken.txt"
SHOWN = 3  # broken files in the line; all are in the file


def prepare(source: UserFolder, own: UserFolderRecipe, out: Path) -> PreparedDataset:
    """Write the images of `source` to `out` as a dataset file; returns the dataset as it was found.

    Views and training are `own`'s (recipes/user_folder.yaml), mean and standard deviation those of the training images.
    Beside `out`, broken.txt lists the files that cannot be read.

    Raises:
        UserError: it is no folder of classes, a class has too few images, or files cannot be read and `skip_broken` is
            not set.
    """
    folder = Path(source.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    parts = _parts(folder)
    names, found = _list(folder, parts)
    side = source.side or round(source.image_size * own.side)
    views = BaseView(
        crop=0,
        flip=source.flip,
        resize=Resize(side=side, area=own.area),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    sums, broken = _read_all(folder, found, views, source.image_size)
    listed = out.parent / BROKEN
    listed.unlink(missing_ok=True)
    if broken:
        files.write_text(listed, "".join(f"{decode_filename(path)}: {why}\n" for path, why in broken.items()))
        few = ", ".join(map(decode_filename, list(broken)[:SHOWN])) + (", ..." if len(broken) > SHOWN else "")
        if not source.skip_broken:
            raise UserError(
                f"{folder}: {len(broken)} of {len(found.labels):,} images cannot be read: {few} "
                f"({listed} lists them); skip_broken: true, or --skip-broken, leaves them out"
            )
        print(f"{folder}: {len(broken)} images cannot be read and are left out: {few} ({listed} lists them)")
    good = np.array([path not in broken for path in found.paths.tolist()])
    kept, sums = found.take(np.flatnonzero(good)), sums[good]
    testing = _for_testing(folder, parts, kept, names, source)
    train, test = kept.take(np.flatnonzero(~testing)), kept.take(np.flatnonzero(testing))
    mean, std = _statistics(sums[~testing], source.image_size)
    views = views.model_copy(update={"mean": mean, "std": std})
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
        base_view=views,
        training=own.training,
        demo=False,
        sha256=sha256,
        class_names=tuple(names),
        left_out=tuple(map(decode_filename, broken)),
    )


def _parts(folder: Path) -> tuple[str, str] | None:
    """The folders of what is trained and of what is tested on; None where there are classes alone."""
    found = [name for name in class_folders(folder) if name.lower() in (TRAIN, *TESTS)]
    train = [name for name in found if name.lower() == TRAIN]
    if not train:
        return None
    test = [name for name in found if name not in train]
    if len(train) > 1 or len(test) != 1:
        raise UserError(
            f"{folder}: beside one {TRAIN}/ one of {_folders(TESTS)} is needed, there is "
            f"{_folders(found)}; a class needs another name"
        )
    return train[0], test[0]


def _folders(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)


def _list(folder: Path, parts: tuple[str, str] | None) -> tuple[list[str], FileList]:
    """Names of the classes and all image files, by their paths relative to `folder`."""
    endings = tuple(ending for of_format in formats().values() for ending in of_format)
    names: list[str] = []
    for part in parts or ("",):
        classes = class_folders(folder / part)
        if len(classes) < 2:
            raise UserError(
                f"{folder / part}: {len(classes)} class folders in it, at least 2 are needed"
                " (<class>/*, or train/<class>/* and val/<class>/*)"
            )
        if parts and names and classes != names:
            odd = min(set(names) ^ set(classes))
            raise UserError(f"{folder}: class {odd} is in {parts[odd not in names]}/ only")
        names = classes
    of_classes = [(folder / part / name, label) for part in parts or ("",) for label, name in enumerate(names)]
    entered: set[str] = set()
    for inside in (folder, *(folder / part for part in parts or ()), *(inside for inside, _ in of_classes)):
        if not _is_new(inside, entered):
            raise UserError(f"{inside}: a link to a folder that is among these already")
    paths, labels = [], []
    for inside, label in of_classes:
        found = _images(inside, endings, entered)
        within = {Path(path).relative_to(inside).parts[0] for path in found}
        if parts is None and len(within) > 1 and all((inside / name).is_dir() for name in within):
            raise UserError(
                f"{inside}: no class, its images are in {_folders(sorted(within)[:SHOWN])}...; "
                f"expected <class>/*, or {TRAIN}/<class>/* beside one of {_folders(TESTS)}"
            )
        paths += [os.fsencode(os.path.relpath(path, folder)) for path in found]
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{folder}: no images in it ({', '.join(endings)})")
    sizes = [_size(folder / os.fsdecode(path)) for path in paths]
    return names, FileList(np.array(paths), np.array(sizes, dtype=np.int64), np.array(labels, dtype=np.int64))


def _images(folder: Path, endings: tuple[str, ...], entered: set[str]) -> list[str]:
    """Image files below a folder, in torchvision's order; no hidden folder is entered, and none twice by a link."""
    below = []
    for inside, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if name[0] != "." and _is_new(Path(inside, name), entered)]
        below.append((inside, sorted(names)))
    return [f"{inside}/{name}" for inside, names in sorted(below) for name in names if name.lower().endswith(endings)]


def _is_new(folder: Path, entered: set[str]) -> bool:
    before = len(entered)
    entered.add(os.path.realpath(folder))
    return len(entered) > before


def _size(file: Path) -> int:
    """In bytes; 0 of a link that leads nowhere, which then cannot be read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _read_all(
    folder: Path, found: FileList, base_view: BaseView, size: int
) -> tuple[npt.NDArray[np.int64], dict[bytes, str]]:
    """Of every image, as it is tested on, sum and sum of squares of each channel [n, 2, 3]; what cannot be read."""
    transform = transforms(base_view, size, training=False)

    paths = found.paths.tolist()
    sums = np.zeros((len(paths), 2, 3), dtype=np.int64)
    broken: dict[int, str] = {}

    def one(place: int) -> int:
        try:
            view = transform(decode(folder / os.fsdecode(paths[place]), ".")).numpy().astype(np.int64)
        except UserError as error:
            broken[place] = one_line(error).removeprefix(".: ")
        else:
            sums[place] = view.sum((1, 2)), (view**2).sum((1, 2))
        return 1

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of Python's lock
        try:
            for _ in track("images", pool.map(one, range(len(paths))), len(paths)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sums, {paths[place]: broken[place] for place in sorted(broken)}


def _for_testing(
    folder: Path, parts: tuple[str, str] | None, kept: FileList, names: list[str], source: UserFolder
) -> npt.NDArray[np.bool_]:
    """Which files are tested on: those of their part, or of every class those that a hash of seed and name puts first.

    By its name, so that a file that is added or taken away moves no other, but at the edge.
    """
    paths = kept.paths.tolist()
    if parts is not None:
        testing = np.array([path.startswith(os.fsencode(f"{parts[1]}/")) for path in paths])
    else:
        testing = np.zeros(len(paths), dtype=bool)
        for label in range(len(names)):
            places = np.flatnonzero(kept.labels == label).tolist()
            places.sort(key=lambda place: hashlib.sha256(b"%d\0%b" % (source.split_seed, paths[place])).digest())
            testing[places[: max(1, round(source.val_share * len(places)))]] = True
    for label, name in enumerate(names):
        of_class = testing[kept.labels == label]
        if of_class.all() or not of_class.any():
            part = "training" if of_class.all() else "testing"
            raise UserError(f"{folder}: class {name}: {len(of_class)} images, none is left for {part}")
    return testing


def _statistics(sums: npt.NDArray[np.int64], size: int) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1, to four digits."""
    mean, square = sums.sum(0) / (len(sums) * size * size * 255.0 ** np.array([[1], [2]]))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # Images of a single colour would be divided by nothing.
    r, g, b = (round(float(value), 4) for value in mean)
    of_r, of_g, of_b = (max(round(float(value), 4), 1e-4) for value in std)
    return (r, g, b), (of_r, of_g, of_b)
