"""The images of a user as a list with their parts: from a map or an archive, and perhaps in a cache."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdflow.config import DATA_FILES
from kdflow.core.errors import UserError
from kdflow.data.cache import cache_images
from kdflow.data.image_files import FileList
from kdflow.data.image_map import PARTS, list_file


@dataclass(frozen=True)
class Listing:
    """The images of a user: `part_of` [n] is an index of `parts`, or None if the settings split the only part."""

    folder: Path
    names: list[str]
    images: FileList
    parts: tuple[str, ...]
    part_of: npt.NDArray[np.intp] | None
    notes: list[str]
    other_files: Counter[str]

    @property
    def paths(self) -> list[bytes]:
        """The paths of the images."""
        return list(self.images.paths.tolist())


def in_cache(listed: Listing, cache: Path, side: int) -> Listing:
    """Return the same images in a cache, at most with this shorter side."""
    source = hashlib.sha256(os.fsencode(listed.folder.resolve())).hexdigest()[:12]  # two folders may have equal names
    folder = cache / source / str(side)
    images = cache_images(listed.folder, listed.images, folder, side)
    resized = int((images.sizes != listed.images.sizes).sum())
    note = f"cache: {resized:,} of {len(images.labels):,} images are resized to a shorter side of {side} px"
    return replace(listed, folder=folder, images=images, notes=[*listed.notes, note])


def listed_by_file(path: Path, test_part: str | None, *, with_final: bool) -> Listing:
    """List the images of a CSV or JSON map or of a ZIP archive; `test_part` and `with_final` are as in a folder.

    Raises:
        UserError: the file is of another kind or not valid, or has no images of a part that is needed.
    """
    if path.suffix.lower() not in DATA_FILES:
        raise UserError(f"{path}: is a file; expected a folder of images, or a file {', '.join(DATA_FILES)}")
    listed = list_file(path)
    given = [] if listed.parts is None else [part for part in PARTS if part in listed.parts]
    if given and ("train" not in given or (test_part is not None and test_part not in given)):
        missing = "train" if "train" not in given else test_part
        raise UserError(f"{path}: lists no images of {missing}")
    if test_part is not None and not given:
        raise UserError(f"{path}: lists no images of {test_part}: they have no split")
    if len(given) < 2:
        return Listing(listed.folder, listed.names, listed.images, ("",), None, [], listed.other_files)
    assert listed.parts is not None
    train, val, test = ([part] if part in given else [] for part in PARTS)
    parts, notes = used_parts(train, val, test, test_part, with_final=with_final)
    kept = np.flatnonzero(np.isin(listed.parts, parts))
    part_of = np.array([parts.index(part) for part in listed.parts[kept]], dtype=np.intp)
    return Listing(listed.folder, listed.names, listed.images.take(kept), parts, part_of, notes, listed.other_files)


def used_parts(
    train: list[str], val: list[str], test: list[str], test_part: str | None, *, with_final: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the parts that are used, and notes."""
    if not (val and test):
        return (*train, *val, *test), []
    if with_final and test_part is None:
        return (*train, *val, *test), [f"{val[0]}/ is the test set, {test[0]}/ is measured once at the end"]
    used, unused = (test, val) if test_part == "test" else (val, test)
    return (*train, *used), [f"{used[0]}/ is the test set, {unused[0]}/ is not read (test_part chooses one of them)"]
