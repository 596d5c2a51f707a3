"""CIFAR-100 (Krizhevsky, 2009) from the official archive or its unpacked folder.

The files are pickles. They are read by an unpickler that only builds numpy arrays and runs no code. Nothing is unpacked
to disk.
"""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError, one_line
from kdflow.data import Split, Splits, archives, download_archive

FOLDER = "cifar-100-python"
ARCHIVE = FOLDER + ".tar.gz"
PARTS = ("train", "test", "meta")
MAX_MEMBER = 2**28  # bytes; train, the largest member, has 155 MB
MAX_ARCHIVE = 2**28  # bytes; the official archive has 169 MB


def read(spec: DatasetSource, folder: Path | None, downloads: Path) -> Splits:
    """Read `folder`, or download the archive; its md5 must be `spec.md5`.

    Args:
        folder: `cifar-100-python/`, or a folder with it or with the archive `cifar-100-python.tar.gz`.
    """
    parts = (
        _from_archive(download_archive(spec, downloads, ARCHIVE, MAX_ARCHIVE), spec)
        if folder is None
        else _from_folder(folder, spec)
    )
    pickles = {name: _unpickle(name, content) for name, content in parts.items()}
    train, test = (_split(name, pickles[name]) for name in ("train", "test"))
    names = _field("meta", pickles["meta"], b"fine_label_names", list)
    return Splits(train, test, [str(name, "ascii", "replace") for name in names if isinstance(name, bytes)])


def _from_folder(folder: Path, spec: DatasetSource) -> dict[str, bytes]:
    if not folder.is_dir():
        raise UserError(f"data_folder: {folder}: no such folder")
    inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not (inside / "train").exists() and (folder / ARCHIVE).is_file():
        return _from_archive(folder / ARCHIVE, spec)
    missing = [name for name in PARTS if not (inside / name).is_file()]
    if missing:
        raise UserError(f"data_folder: {inside}: missing: {', '.join(missing)} (expected {FOLDER}/ or {ARCHIVE})")
    return {name: (inside / name).read_bytes() for name in PARTS}


def _from_archive(archive: Path, spec: DatasetSource) -> dict[str, bytes]:
    archives.check_md5(archive, spec.md5)
    check = archives.MemberCheck(str(archive), FOLDER, MAX_MEMBER)
    parts: dict[str, bytes] = {}
    with gzip.open(archive) as file:
        for name, info in archives.tar_members(file, check):
            if name in PARTS:
                parts[name] = archives.read_member(file, info, str(archive))
    missing = [name for name in PARTS if name not in parts]
    if missing:
        raise UserError(f"{archive}: not the archive of CIFAR-100: {FOLDER}/{missing[0]} is missing")
    return parts


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays of numbers and refuses every other name, so that no code can run."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        """Return a name that pickled arrays need; numpy 2 calls its module numpy._core."""
        if (module, name) == ("_codecs", "encode"):  # Python 3 writes bytes for Python 2 with it
            return _latin1
        known = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
        if module.split(".", maxsplit=1)[0] == "numpy" and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


def _latin1(text: str, codec: str) -> bytes:  # noqa: ARG001 (pickle uses no other codec)
    return text.encode("latin1")


def _unpickle(name: str, content: bytes) -> dict[Any, Any]:
    try:
        value = _ArraysOnly(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{FOLDER}/{name}: refused, not a plain pickle of arrays: {one_line(error)}") from None
    except Exception as error:  # Damaged files raise exceptions of many types.
        raise UserError(f"{FOLDER}/{name}: damaged or cut short ({type(error).__name__}: {one_line(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{FOLDER}/{name}: expected a dictionary, found {type(value).__name__}")
    return value


def _field(name: str, content: dict[Any, Any], key: bytes, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        raise UserError(f"{FOLDER}/{name}: {key.decode()}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _split(name: str, content: dict[Any, Any]) -> Split:
    rows = _field(name, content, b"data", np.ndarray)
    labels = _field(name, content, b"fine_labels", list)
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * 32 * 32:
        raise UserError(f"{FOLDER}/{name}: data: expected uint8 [n, 3072], found {rows.dtype} {list(rows.shape)}")
    if not all(isinstance(label, int) and abs(label) < 2**31 for label in labels):
        raise UserError(f"{FOLDER}/{name}: fine_labels: expected integers")
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Split(images, np.asarray(labels, dtype=np.int64))
