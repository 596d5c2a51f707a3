"""HDF5 file of teacher logits: one contiguous dataset `logits`, read as a memory map; its attributes are the cache key.

Reading rows through h5py takes a hundred times as long as from the memory map.
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
HEADER = 2**16  # bytes, more than enough for everything but the logits
CacheKey = Mapping[str, str]


class StoreError(ValueError):
    """A store that cannot be used. The message is one line: the file and the reason."""


def create_store(path: Path, shape: tuple[int, ...], dtype: str, key: CacheKey) -> int:
    """Create a store at `path` without writing logits; return the offset of the logits in the file, in bytes.

    Raises:
        OSError: the disk is full.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size + HEADER)  # HDF5 may crash if the disk is full
    with h5py.File(path, "w", locking=False) as file:
        for name, value in key.items():
            file.attrs[name] = value
        file.attrs.create(SHA256, "0" * 64, dtype="S64")
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)  # so that the same logits make the same file
        kind, space = h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape)
        start: int = h5py.h5d.create(file.id, NAME.encode(), kind, space, dcpl=properties).get_offset()
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), start, size)
    return start


def check_header(path: Path, start: int, shape: tuple[int, ...], dtype: str, key: CacheKey) -> None:
    """Check all of an incomplete store but its logits, which start at byte `start`.

    Raises:
        StoreError: the file is damaged, or has another key, shape or dtype.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: _text(value) for name, value in file.attrs.items() if name != SHA256}
            logits = file[NAME]
            same = (logits.id.get_offset(), logits.shape, logits.dtype) == (start, shape, np.dtype(dtype))
    except Exception as error:  # h5py raises many kinds of exceptions for a damaged file
        raise StoreError(f"{path}: damaged store of logits ({one_line(error)})") from None
    if not same or found != dict(key):
        raise StoreError(f"{path}: store of other logits")


def finalize(path: Path) -> None:
    """Write the SHA-256 of the logits into a store that is complete."""
    digest = _digest(_map(path))
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs.modify(SHA256, np.bytes_(digest))


def write_store(path: Path, logits: npt.NDArray[Any], key: CacheKey) -> None:
    """Write a store to `path` atomically."""
    with files.atomic_write(path) as beside:
        start = create_store(beside, logits.shape, logits.dtype.name, key)
        with beside.open("r+b") as file:
            file.seek(start)
            file.write(np.ascontiguousarray(logits).data)
        finalize(beside)


def read_store(path: Path, shape: tuple[int, ...], dtype: str, key: CacheKey) -> npt.NDArray[Any]:
    """Return the logits at `path`, memory-mapped and read-only, after a check of their hash.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: the file is damaged, or has another key, shape or dtype.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = {name: _text(value) for name, value in file.attrs.items()}
        logits = _map(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # h5py raises many kinds of exceptions for a damaged file
        raise StoreError(f"{path}: damaged store of logits ({one_line(error)})") from None
    expected = found.pop(SHA256, None)
    for name in sorted(key.keys() | found.keys()):
        if key.get(name) != found.get(name):
            raise StoreError(f"{path}: store of other logits: {name} is {found.get(name)}, expected {key.get(name)}")
    if logits.shape != shape or logits.dtype != dtype:
        difference = f"{logits.dtype} {list(logits.shape)}, expected {dtype} {list(shape)}"
        raise StoreError(f"{path}: store of other logits: {difference}")
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
