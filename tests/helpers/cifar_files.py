"""CIFAR-100 in its official form, with few images."""

import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError
from kdflow.data import prepare

FOLDER = "cifar-100-python"
ARCHIVE = "cifar-100-python.tar.gz"
COUNTS = {"train": 200, "test": 100}
SPEC = DatasetSource(reader="cifar100", classes=100, image_size=32, train_images=200, test_images=100)
NAMES = [f"class_{i}" for i in range(100)]


def pickle_content(name: str) -> dict[bytes, object]:
    """Return the content of an official pickle: a dictionary with bytes as keys."""
    if name == "meta":
        return {
            b"fine_label_names": [text.encode() for text in NAMES],
            b"coarse_label_names": [b"coarse"] * 20,
        }
    n = COUNTS[name]
    random = np.random.RandomState(n)
    return {
        b"filenames": [b"x.png"] * n,
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": [int(label) for label in random.permutation(np.arange(n) % 100)],
        b"coarse_labels": [0] * n,
        b"data": random.randint(0, 256, (n, 3072), dtype=np.uint8),
    }


class _Python2(pickle._Pickler):
    """Writes bytes and text as Python 2 wrote its strings, as in the official files."""

    def _string(self, value: bytes | str) -> None:
        raw = value.encode("latin-1") if isinstance(value, str) else value
        if len(raw) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: _string, str: _string}  # noqa: RUF012


def dumps(value: object) -> bytes:
    """Pickle a value as Python 2 did."""
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(value)
    return file.getvalue()


def write(folder: Path, **changed: object) -> Path:
    """Write `cifar-100-python/` to `folder`; `changed` has other contents, raw bytes, or None for no file."""
    inside = folder / FOLDER
    inside.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        value = changed.get(name, pickle_content(name)) if name in changed else pickle_content(name)
        if value is not None:
            (inside / name).write_bytes(value if isinstance(value, bytes) else dumps(value))
    return inside


def pack(folder: Path, archive: Path, members: tuple[str, ...] = ("train", "test", "meta")) -> str:
    """Write an archive of `folder`/cifar-100-python with these members and return its md5."""
    with tarfile.open(archive, "w:gz") as tar:
        for name in members:
            tar.add(folder / FOLDER / name, f"{FOLDER}/{name}")
    return hashlib.md5(archive.read_bytes()).hexdigest()


def with_values(spec: DatasetSource, **values: object) -> DatasetSource:
    """Return the spec with other values."""
    return DatasetSource(**{**spec.model_dump(), **values})


def refused(*mentions: str, spec: DatasetSource = SPEC, folder: Path | None, tmp_path: Path) -> str:
    """Check that `prepare` fails with a line of all `mentions` and writes nothing; return the line."""
    out = tmp_path / "out" / "cifar100.h5"
    with pytest.raises(UserError) as caught:
        prepare("cifar100", spec, folder, tmp_path / "downloads", out)
    message = str(caught.value)
    assert "\n" not in message
    for mention in mentions:
        assert mention in message
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return message
