"""Reading of weight files without running code and in bounded memory: safetensors, or files of torch.save."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdflow.core.errors import UserError, is_out_of_memory, one_line

MEMORY_MARGIN = 512 * 2**20  # bytes that torch may need beyond twice the file's size
MAX_NAME_LENGTH = 500  # characters of a weight's name
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Files of other kinds, by their first bytes.
KINDS = (
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX graph; give the PyTorch checkpoint of this model"),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes; weights are read from safetensors and files of torch.save"),
    (rb"version https://git-lfs", "a pointer of Git LFS, without the weights; `git lfs pull` downloads them"),
    (rb"\s*<(!doctype|html)", "a web page, not the file that was to be downloaded"),
)

# Checkpoints may hold numpy scalars, such as the best accuracy. These names are unpickled as `_Ignored`: numpy's dtypes
# accept any flags from a file, which is not safe.
NUMPY_SCALARS = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar", "numpy.dtype")


class _Ignored:
    """Stands in for a numpy scalar, which is not needed."""

    def __init__(self, *_arguments: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


def check_is_file(path: Path) -> int:
    """Return the size of a regular file in bytes.

    Raises:
        UserError: the file is missing or empty, or is a folder, a pipe, a device or a loop of links.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path}: a symbolic link that leads back to itself") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is a pipe or a device, not a file")
    if status.st_size == 0:
        raise UserError(f"{path}: is empty")
    return status.st_size


def check_kind(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        UserError: the file is of a kind that has no weights of PyTorch, such as ONNX.
    """
    with path.open("rb") as file:
        head = file.read(100)
    for pattern, kind in KINDS:
        if re.match(pattern, head, re.IGNORECASE) and head[5:8] != bytes(3):  # not the length of a safetensors header
            raise UserError(f"{path}: is {kind}")
    return head


def read(path: Path) -> Any:
    """Read a file: a dict of tensors from safetensors, else what torch.save wrote, of tensors, numbers and containers.

    Raises:
        UserError: the file cannot be read, would run code, or needs more memory than its size explains.
    """
    size = check_is_file(path)
    head = check_kind(path)
    try:
        with memory_limit(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of rare kinds of tensors, which are refused later
            if head[8:9] == b"{":  # a safetensors header, after the 8 bytes of its length
                return safetensors.torch.load_file(path)
            if head.startswith(b"PK"):
                _check_archive(path, size)
            # Training scripts save their options as a Namespace, which only holds values.
            with torch.serialization.safe_globals([Namespace, *((_Ignored, name) for name in NUMPY_SCALARS)]):
                return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (BlockingIOError, PermissionError) as error:  # such as of a file that another program has locked
        raise UserError(f"{path}: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise UserError(f"{path}: refused: a pickle of more than tensors, or not a weights file") from None
        raise UserError(
            f"{path}: refused: a pickle of more than tensors ({refused[1]}). If you trust it, save its state dict: "
            f"`x = torch.load({path.name!r}, 'cpu', weights_only=False)`, then `torch.save(x.state_dict(), 'new.pt')` "
            "for a whole model, or the entry of x that has the weights, such as x['state_dict']"
        ) from None
    except Exception as error:  # Damaged files raise exceptions of many types.
        kind = "a damaged safetensors file" if head[8:9] == b"{" else "neither safetensors nor a whole torch file"
        raise UserError(f"{path}: {kind} ({_printable(error)})") from None


def dense_tensor(path: Path, name: str, value: Any) -> Tensor:
    """Return the tensor `name` of a file, detached, if it is dense and in memory.

    Raises:
        UserError: the tensor is sparse, quantised, expanded or on the meta device, or its name cannot be printed.
    """
    if not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        raise UserError(f"{path}: refused: a weight's name is too long or has control characters: {name[:40]!r}")
    if not isinstance(value, Tensor):
        raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    # The method of the class, not of the instance: a pickle may set attributes on a tensor, which this drops.
    tensor: Tensor = Tensor.detach(value)
    if tensor.is_meta:
        raise UserError(f"{path}: {name} has a shape but no values (a meta tensor)")
    if tensor.layout != torch.strided:
        raise UserError(f"{path}: {name} is a sparse tensor; weights are dense")
    if tensor.is_quantized:
        raise UserError(f"{path}: {name} is quantised; weights are floating-point numbers")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UserError(f"{path}: {name} is {list(tensor.shape)}, but its storage is smaller")
    return tensor


def check_finite(path: Path, name: str, value: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: `value` has some.
    """
    count = int((~torch.isfinite(value)).sum())
    if count:
        raise UserError(f"{path}: {name} has NaN or infinity in {count:,} of its {value.numel():,} values")


@dataclass(frozen=True)
class StateDifference:
    """The difference between a state dict and a model's: missing names, unknown names, and other shapes by name."""

    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    shapes: dict[str, str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.shapes)

    def __str__(self) -> str:
        lines = [f"{key} is missing" for key in self.missing] + [f"{key} is unknown" for key in self.unknown]
        lines += [f"{key} is {text}" for key, text in self.shapes.items()]
        return ", ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")


def compare_states(state: dict[str, Tensor], expected: dict[str, Tensor], optional: str = "") -> StateDifference:
    """Compare names and shapes of `state` with those of a model.

    Args:
        optional: ending of names that may be missing; empty if none may.
    """
    return StateDifference(
        missing=tuple(key for key in expected if key not in state and not (optional and key.endswith(optional))),
        unknown=tuple(key for key in state if key not in expected),
        shapes={
            key: f"{list(state[key].shape)} instead of {list(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        },
    )


def _printable(error: Exception) -> str:
    """Return the beginning of an error's text without control characters, since it may quote the file."""
    return "".join(filter(str.isprintable, one_line(error)))[:120] or type(error).__name__


def _check_archive(path: Path, size: int) -> None:
    """Refuse an archive that is compressed or has an entry twice: torch.save writes neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # Damaged files raise exceptions of many types.
        raise UserError(f"{path}: a damaged archive ({_printable(error)})") from None
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{path}: refused: TorchScript, which is code. If you trust it, save its state dict: "
            f"`x = torch.jit.load({path.name!r}, 'cpu')`, then `torch.save(x.state_dict(), 'new.pt')`"
        )
    if any(name.endswith(("/archive_format", "/models/model.json")) for name in names):
        raise UserError(
            f"{path}: refused: a program of torch.export, which is code. If you trust it, save its state dict: "
            f"`x = torch.export.load({path.name!r})`, then `torch.save(x.state_dict, 'new.pt')`"
        )
    if any(name.endswith(".npy") for name in names):
        raise UserError(f"{path}: is a file of NumPy arrays; save them as a dict of tensors by torch.save")
    declared = sum(entry.file_size for entry in entries)
    if declared > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(
            f"{path}: refused: an archive of {size:,} bytes that unpacks to {declared:,}; torch.save does not compress"
        )
    if len(set(names)) != len(names):
        raise UserError(f"{path}: refused: an archive with two entries of one name")


@contextmanager
def memory_limit(path: Path) -> Iterator[None]:
    """Limit the additional memory of this process to what the size of a file explains.

    Raises:
        UserError: the block needs more.
    """
    size = path.stat().st_size
    try:
        with _address_space_limit(2 * size + MEMORY_MARGIN):
            yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{path}: refused: needs far more memory than its {size:,} bytes explain") from None


@contextmanager
def _address_space_limit(additional: int) -> Iterator[None]:
    """Limit the address space of this process to `additional` bytes more than now; no limit where /proc is missing."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + additional
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
