"""Images of one's own: any folder of classes becomes a dataset, split and measured here.

The files stay where they are; what is written is a list of them. All are read once, for mean and standard deviation of
what the model will see, and to find those that cannot be read.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torchvision.datasets.folder import find_classes, make_dataset

from kdflow import data, files
from kdflow.config import Data, Folder, Own, Prepared, Resize, Triple, Views
from kdflow.data import Splits
from kdflow.errors import UserError, one_line
from kdflow.progress import counted
from kdflow.stream import Listing, decode, formats, transforms

PARTS = ("train", "val")
BROKEN = "broken.txt"
SHOWN = 3  # broken files in the line; all are in the file


def prepare(source: Folder, own: Own, out: Path) -> Prepared:
    """Write the images of `source` to `out` as a dataset file; returns the dataset as it was found.

    Views and training are `own`'s (recipes/own.yaml), mean and standard deviation those of the training images.
    Beside `out`, broken.txt lists the files that cannot be read.

    Raises:
        UserError: it is no folder of classes, a class has too few images, or files cannot be read and `skip_broken` is
            not set.
    """
    folder = Path(source.folder).expanduser()
    names, found = _list(folder)
    side = round(source.image_size * own.side)
    views = Views(
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
        files.write_text(listed, "".join(f"{name}: {why}\n" for name, why in broken.items()))
        few = ", ".join(list(broken)[:SHOWN]) + (", ..." if len(broken) > SHOWN else "")
        if not source.skip_broken:
            raise UserError(
                f"dataset.folder: {folder}: {len(broken)} of {len(found.labels):,} images cannot be read: {few} "
                f"({listed} lists them); skip_broken: true leaves them out"
            )
        print(f"{folder}: {len(broken)} images cannot be read and are left out: {few} ({listed} lists them)")
    good = np.array([os.fsdecode(path) not in broken for path in found.paths.tolist()])
    kept, sums = found.take(np.flatnonzero(good)), sums[good]
    testing = _for_testing(folder, kept, names, source)
    train, test = kept.take(np.flatnonzero(~testing)), kept.take(np.flatnonzero(testing))
    mean, std = _statistics(sums[~testing], source.image_size)
    views = views.model_copy(update={"mean": mean, "std": std})
    sha256 = data.write(source.name, source.image_size, Splits(train, test, names, folder.resolve()), out)
    return Prepared(
        name=source.name,
        source=source,
        data=Data(
            reader="image_folder",
            classes=len(names),
            image_size=source.image_size,
            train_images=len(train.labels),
            test_images=len(test.labels),
        ),
        views=views,
        training=own.training,
        demo=False,
        sha256=sha256,
        class_names=tuple(names),
        left_out=tuple(broken),
    )


def _list(folder: Path) -> tuple[list[str], Listing]:
    """Names of the classes and all image files, by their paths relative to `folder`."""
    if not folder.is_dir():
        raise UserError(f"dataset.folder: {folder}: no such folder")
    parts = list(PARTS) if all((folder / part).is_dir() for part in PARTS) else [""]
    endings = tuple(ending for of_format in formats().values() for ending in of_format)
    names: list[str] = []
    paths, labels = [], []
    for part in parts:
        try:
            classes = find_classes(folder / part)[0]
        except FileNotFoundError:
            classes = []
        if len(classes) < 2:
            raise UserError(
                f"dataset.folder: {folder / part}: {len(classes)} class folders in it, at least 2 are needed"
                " (<class>/*, or train/<class>/* and val/<class>/*)"
            )
        if names and classes != names:
            odd = min(set(names) ^ set(classes))
            raise UserError(f"dataset.folder: {folder}: class {odd} is in {'train' if odd in names else 'val'}/ only")
        names = classes
        numbers = {name: number for number, name in enumerate(names)}
        for path, label in make_dataset(str(folder / part), numbers, endings, allow_empty=True):
            paths.append(os.fsencode(os.path.relpath(path, folder)))
            labels.append(label)
    if not paths:
        raise UserError(f"dataset.folder: {folder}: no images in it ({', '.join(endings)})")
    sizes = [os.stat(folder / os.fsdecode(path)).st_size for path in paths]  # noqa: PTH116
    return names, Listing(np.array(paths), np.array(sizes, dtype=np.int64), np.array(labels, dtype=np.int64))


def _read_all(folder: Path, found: Listing, views: Views, size: int) -> tuple[npt.NDArray[np.int64], dict[str, str]]:
    """Of every image, as it is tested on, sum and sum of squares of each channel [n, 2, 3]; what cannot be read."""
    transform = transforms(views, size, training=False)

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
            for _ in counted("images", pool.map(one, range(len(paths))), len(paths)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sums, {os.fsdecode(paths[place]): broken[place] for place in sorted(broken)}


def _for_testing(folder: Path, kept: Listing, names: list[str], source: Folder) -> npt.NDArray[np.bool_]:
    """Which files are tested on: those of val/, or of every class those that a hash of seed and name puts first.

    By its name, so that a file that is added or taken away moves no other, but at the edge.
    """
    paths = kept.paths.tolist()
    if (folder / PARTS[0]).is_dir() and (folder / PARTS[1]).is_dir():
        testing = np.array([path.startswith(b"val" + os.fsencode(os.sep)) for path in paths])
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
            raise UserError(f"dataset.folder: {folder}: class {name}: {len(of_class)} images, none is left for {part}")
    return testing


def _statistics(sums: npt.NDArray[np.int64], size: int) -> tuple[Triple, Triple]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1, to four digits."""
    mean, square = sums.sum(0) / (len(sums) * size * size * 255.0 ** np.array([[1], [2]]))
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # Images of a single colour would be divided by nothing.
    r, g, b = (round(float(value), 4) for value in mean)
    of_r, of_g, of_b = (max(round(float(value), 4), 1e-4) for value in std)
    return (r, g, b), (of_r, of_g, of_b)
