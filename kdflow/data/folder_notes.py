"""Notes about a user's images: what was converted or left out, and warnings of what may spoil a result."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdflow.config import Triple
from kdflow.core.errors import decode_filename
from kdflow.data.decode import plugin_hint
from kdflow.data.image_files import FileList
from kdflow.data.measure import MIN_STD, Measured

MAX_NAMES = 3  # file names in one note
MAX_RANGE_RATIO = 8  # of the largest values of two images of 16 bits; three bits more than a dark image needs


def folder_notes(
    images: FileList,
    is_test: npt.NDArray[np.bool_],
    names: Sequence[str],
    measured: Measured,
    std: Triple,
    other_files: Mapping[str, int],
) -> list[str]:
    """Return the notes about a folder, one line each.

    Args:
        std: the measured standard deviation of each channel.
        other_files: the number of files that are not images, by their ending.
    """
    paths = [decode_filename(path) for path in images.paths.tolist()]
    return [
        *_other_files(other_files),
        *_conversions(paths, measured),
        *_ranges(paths, measured),
        *_single_colours(images.labels, names, measured, std),
        *_copies(paths, images.labels, is_test, measured.hashes),
        *_order(names),
    ]


def _other_files(endings: Mapping[str, int]) -> list[str]:
    if not endings:
        return []
    counts = ", ".join(f"{ending or 'no ending'} {count:,}" for ending, count in Counter(endings).most_common())
    return [f"{_files(sum(endings.values()))} of other kinds left out ({counts}){plugin_hint(endings)}"]


def _conversions(paths: list[str], measured: Measured) -> list[str]:
    notes, transparent, colour16 = [], np.flatnonzero(measured.transparent), np.flatnonzero(measured.colour16)
    if len(transparent):
        first = _first(paths[i] for i in transparent)
        notes.append(f"{_files(len(transparent))} with transparency, composited over white ({first})")
    if len(colour16):
        first = _first(paths[i] for i in colour16)
        notes.append(
            f"warning: {_files(len(colour16))} with colours of 16 bits, of which only the upper 8 are read ({first})"
        )
    return notes


def _ranges(paths: list[str], measured: Measured) -> list[str]:
    """Return the notes about grey images of 16 bits."""
    wide = np.flatnonzero(measured.grey16_max >= 0)
    if not len(wide):
        return []
    order = wide[np.argsort(measured.grey16_max[wide], kind="stable")]
    darkest, brightest = (int(measured.grey16_max[i]) for i in (order[0], order[-1]))
    notes = [f"{_files(len(wide))} with grey of 16 bits; the largest value, {brightest:,}, becomes 255"]
    if len(wide) < len(paths):
        narrow = next(path for path, value in zip(paths, measured.grey16_max, strict=True) if value < 0)
        notes.append(
            f"warning: images of different ranges: {len(wide):,} of {len(paths):,} have grey of 16 bits, "
            f"the others have 8 bits ({paths[wide[0]]}, {narrow})"
        )
    if brightest >= MAX_RANGE_RATIO * max(darkest, 1):
        notes.append(
            f"warning: images of different ranges: the largest value is {darkest:,} in {paths[order[0]]} and "
            f"{brightest:,} in {paths[order[-1]]}; all are divided by the same number"
        )
    return notes


def _single_colours(labels: npt.NDArray[np.int64], names: Sequence[str], measured: Measured, std: Triple) -> list[str]:
    notes = []
    if min(std) <= MIN_STD:
        notes.append(f"warning: the training images have a single colour: their standard deviation is {list(std)}")
    for label, name in enumerate(names):
        of_class = measured.sums[labels == label]
        if len(of_class) > 1 and (of_class == of_class[0]).all():
            notes.append(f"warning: class {name}: all {len(of_class):,} images are equal")
    return notes


def _copies(
    paths: list[str], labels: npt.NDArray[np.int64], is_test: npt.NDArray[np.bool_], hashes: npt.NDArray[Any]
) -> list[str]:
    """Return the notes about files with the same content."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(hashes.tolist()):
        same[digest].append(index)
    across, classes, within = [], [], []
    for group in (group for group in same.values() if len(group) > 1):
        tested, trained = ([i for i in group if is_test[i] == part] for part in (True, False))
        if tested and trained:
            across += [f"{paths[i]} = {paths[trained[0]]}" for i in tested]
        other = next((i for i in group if labels[i] != labels[group[0]]), None)
        if other is not None:
            classes.append(f"{paths[group[0]]} = {paths[other]}")
        kinds: dict[tuple[int, bool], int] = {}
        for i in group:
            first = kinds.setdefault((int(labels[i]), bool(is_test[i])), i)
            if first != i:
                within.append(f"{paths[i]} = {paths[first]}")
    notes = []
    if across:
        notes.append(f"warning: copies of training images among the test images: {len(across):,} ({_first(across)})")
    if classes:
        notes.append(f"warning: images in more than one class: {len(classes):,} ({_first(classes)})")
    if within:
        notes.append(f"copies of an image within its class: {len(within):,} ({_first(within)})")
    return notes


def _order(names: Sequence[str]) -> list[str]:
    """Return a note if classes are whole numbers in another order than the numbers'."""
    if not all(name.isdecimal() for name in names) or list(names) == sorted(names, key=int):
        return []
    return [f"classes are sorted as text, not as numbers: {', '.join(names[:4])}, ..."]


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _first(items: Iterable[str]) -> str:
    listed = list(items)
    return ", ".join(listed[:MAX_NAMES]) + (", ..." if len(listed) > MAX_NAMES else "")
