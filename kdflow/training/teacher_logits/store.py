"""The file of a store: one contiguous HDF5 dataset `logits`, mapped to be read; attributes say what it is.

Reading rows through h5py takes a hundred times as long as from the mapped file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from kdflow.core import files
from kdflow.core.errors import one_line

NAME, SHA256 = "logits", "sha256"
HEADER = 2**16  # bytes that are more than enough for all but the logits
CacheKey = Mapping[str, str]


class StoreError(ValueError):
    """A store that cannot be used: the file, and why, in one line."""


def create_store(path: Path, shape: tuple[int, ...], dtype: str, about: CacheKey) -> int:
    """Make a store at `path` whose logits are still to be written; returns at which byte they start.

    Raises:
        OSError: there is no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size + HEADER)  # HDF5's own writing may crash on a full disk
    with h5py.File(path, "w", locking=False) as file:
        for key, value in about.items():
            file.attrs[key] = value
        file.attrs.create(SHA256, "0" * 64, dtype="S64")
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        plan.set_obj_track_times(False)  # so that the same logits make the same file
        kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
        start: int = h5py.h5d.create(file.id, NAME.encode(), kind, space, dcpl=plan).get_offset()
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), start, size)
    return start


def finalize(path: Path) -> None:
    """Write into a store whose logits are all there the SHA-256 of them."""
    digest = _digest(_map(path))
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs.modify(SHA256, np.bytes_(digest))


def write_store(path: Path, logits: npt.NDArray[Any], about: CacheKey) -> None:
    """Write a store to `path`, all of it or nothing."""
    with files.atomic_write(path) as beside:
        start = create_store(beside, logits.shape, logits.dtype.name, about)
        with beside.open("r+b") as file:
            file.seek(start)
            file.write(np.ascontiguousarray(logits).data)
        finalize(beside)


def read_store(path: Path, shape: tuple[int, ...], dtype: str, about: CacheKey) -> npt.NDArray[Any]:
    """The logits at `path`, mapped read-only, after a look at all of them.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it is damaged, or of something else than `about` says.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {key: _text(value) for key, value in file.attrs.items()}
        logits = _map(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file fails in any way it likes
        raise StoreError(f"{path}: damaged store of logits ({one_line(error)})") from None
    expected = found.pop(SHA256, None)
    for key in sorted(about.keys() | found.keys()):
        if about.get(key) != found.get(key):
            raise StoreError(f"{path}: store of other logits: {key} is {found.get(key)}, expected {about.get(key)}")
    if logits.shape != shape or logits.dtype != dtype:
        what = f"{logits.dtype} {list(logits.shape)}, expected {dtype} {list(shape)}"
        raise StoreError(f"{path}: store of other logits: {what}")
    if _digest(logits) != expected:
        raise StoreError(f"{path}: damaged store of logits (its content differs from its hash)")
    return logits


def _map(path: Path) -> npt.NDArray[Any]:
    with h5py.File(path, "r", locking=False) as file:
        dataset = file[NAME]
        start, shape, dtype = dataset.id.get_offset(), dataset.shape, dataset.dtype
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype, int(np.prod(shape)), start).reshape(shape)


def _digest(logits: npt.NDArray[Any]) -> str:
    return hashlib.sha256(logits.data).hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
