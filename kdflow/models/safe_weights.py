"""Weights on disk, read without running code and in bounded memory: safetensors, or what torch.save wrote."""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import stat
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdflow.core.errors import UserError, one_line

MEMORY_MARGIN = 512 * 2**20  # bytes that reading may take beyond twice the file's size: what torch needs for itself
MAX_NAME_LENGTH = 500  # characters of a weight's name
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What makes a numpy scalar, as the best accuracy beside the weights is. Nothing of numpy is called: its dtypes would
# believe whatever flags a file gives them.
NUMPY = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "numpy.dtype")


class _Left:
    """A value that nobody asks for."""

    def __init__(self, *_arguments: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def check_is_file(path: Path) -> int:
    """The size of a file that can be read to its end.

    Raises:
        UserError: there is none, it is empty, or it is a folder, a pipe, a device or a loop of links.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: a symbolic link that leads back to itself") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is a pipe or a device, not a file")
    if found.st_size == 0:
        raise UserError(f"{path}: is empty")
    return found.st_size


def read(path: Path) -> Any:
    """What the file holds: tensors by name, or whatever of dicts, lists, numbers and tensors torch.save was given.

    Raises:
        UserError: it cannot be read, asks for code, or asks for more memory than its size explains.
    """
    size = check_is_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    try:
        with memory_limit(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own remarks on old or rare kinds of tensors, refused later
            if head[8:] == b"{":  # after the eight bytes of its length, a safetensors header
                return safetensors.torch.load_file(path)
            if head.startswith(b"PK"):
                _check_archive(path, size)
            # A Namespace is a bag of values: training scripts keep their options in one beside the weights.
            with torch.serialization.safe_globals([Namespace, *((_Left, name) for name in NUMPY)]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL ([\w.]+)", str(error))
        asked = f" ({wants[1]})" if wants else ""
        raise UserError(
            f"{path}: refused: a pickle that asks for more than tensors{asked}, or no weights at all"
        ) from None
    except Exception as error:  # a damaged file fails in any way it likes
        kind = "a damaged safetensors file" if head[8:] == b"{" else "neither safetensors nor a whole torch file"
        raise UserError(f"{path}: {kind} ({_printable(error)})") from None


def dense_tensor(path: Path, name: str, value: Any) -> Tensor:
    """The tensor `name` of a file, if it is numbers in memory: nothing sparse, quantised, expanded or elsewhere.

    Raises:
        UserError: it is not, or its name is none that can be printed.
    """
    if not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        raise UserError(f"{path}: refused: a weight's name is too long or has control characters: {name[:40]!r}")
    if not isinstance(value, Tensor):
        raise UserError(f"{path}: {name} is no tensor but {type(value).__name__}")
    # The class's detach, not the instance's: a pickle may hang attributes on a tensor, and this leaves them behind.
    bare: Tensor = Tensor.detach(value)
    if bare.is_meta:
        raise UserError(f"{path}: {name} has a shape but no values (a meta tensor)")
    if bare.layout != torch.strided:
        raise UserError(f"{path}: {name} is a sparse tensor; weights are dense ones")
    if bare.is_quantized:
        raise UserError(f"{path}: {name} is quantised; weights are floating-point numbers")
    if bare.untyped_storage().nbytes() < bare.numel() * bare.element_size():
        raise UserError(f"{path}: {name} is {list(bare.shape)}, but holds fewer numbers than that")
    return bare


def check_finite(path: Path, name: str, value: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: there are some.
    """
    wrong = int((~torch.isfinite(value)).sum())
    if wrong:
        raise UserError(f"{path}: {name} has NaN or infinity in {wrong:,} of its {value.numel():,} values")


def _printable(error: Exception) -> str:
    """The beginning of an error's text, which may quote the file."""
    return "".join(filter(str.isprintable, one_line(error)))[:120] or type(error).__name__


def _check_archive(path: Path, size: int) -> None:
    """Refuse an archive that unpacks to more than itself: torch writes each entry as it is, once."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # as of a damaged file
        raise UserError(f"{path}: a damaged archive ({_printable(error)})") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path}: refused: TorchScript, which is code; wanted are the weights alone, its state_dict()")
    declared = sum(entry.file_size for entry in entries)
    if declared > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(
            f"{path}: refused: an archive of {size:,} bytes that unpacks to {declared:,}; torch.save does not compress"
        )
    if len(set(names)) != len(names):
        raise UserError(f"{path}: refused: an archive with two entries of one name")


@contextmanager
def memory_limit(path: Path) -> Iterator[None]:
    """Let this process map no more in addition than a file's size explains.

    Raises:
        UserError: it wanted more.
    """
    size = path.stat().st_size
    try:
        with _limited(2 * size + MEMORY_MARGIN):
            yield
    except Exception as error:
        if not (isinstance(error, MemoryError) or re.search("allocate memory|bad_alloc", str(error))):
            raise
        raise UserError(f"{path}: refused: asks for far more memory than its {size:,} bytes explain") from None


@contextmanager
def _limited(more: int) -> Iterator[None]:
    """Let this process map no more than so many bytes in addition; where there is no /proc, as it is."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + more
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
