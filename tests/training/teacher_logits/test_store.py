"""The file of a store: what was written comes back, and nothing else is taken for it."""

import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kdflow.training.teacher_logits import store
from kdflow.training.teacher_logits.store import StoreError

ABOUT = {"teacher_sha256": "a" * 64, "dataset_sha256": "b" * 64, "view": "crop 4", "note": "grüße"}
LOGITS = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float16)


@pytest.fixture
def path(tmp_path) -> Path:
    store.write_store(tmp_path / "sub/x.h5", LOGITS, ABOUT)
    return tmp_path / "sub/x.h5"


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(st.sampled_from([np.float16, np.float32]), st.tuples(st.integers(1, 9), st.integers(1, 5))))
def test_what_was_written_comes_back(tmp_path_factory, logits):
    path = tmp_path_factory.mktemp("store") / "x.h5"
    store.write_store(path, logits, ABOUT)
    read = store.read_store(path, logits.shape, logits.dtype.name, ABOUT)
    assert read.tobytes() == logits.tobytes() and read.dtype == logits.dtype


def test_it_is_hdf5_with_its_attributes(path):
    with h5py.File(path) as file:
        assert file["logits"].chunks is None
        assert np.array_equal(file["logits"][:], LOGITS)
        assert {key: file.attrs[key] for key in ABOUT} == ABOUT
        assert len(file.attrs["sha256"]) == 64
    assert list(path.parent.iterdir()) == [path]


def test_it_is_mapped_and_cannot_be_written_to(path):
    read = store.read_store(path, LOGITS.shape, "float16", ABOUT)
    with pytest.raises(ValueError, match="read-only"):
        read[0, 0] = 1


def test_a_missing_file_is_another_matter(tmp_path):
    with pytest.raises(FileNotFoundError):
        store.read_store(tmp_path / "none.h5", LOGITS.shape, "float16", ABOUT)


def _refused(path: Path, says: str, shape=LOGITS.shape, dtype="float16", about=ABOUT) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        store.read_store(path, shape, dtype, about)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and says in message, message
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_cut_short(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _refused(path, "damaged store")


def test_every_flipped_byte_of_the_logits_is_seen(path):
    content = path.read_bytes()
    start = content.index(LOGITS.tobytes())
    for place in range(start, start + LOGITS.nbytes, 37):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        _refused(path, "differs from its hash")


def test_a_wrong_hash(path):
    with h5py.File(path, "r+") as file:
        file.attrs.modify("sha256", np.bytes_("0" * 64))
    _refused(path, "differs from its hash")


def test_text_and_hdf5_of_something_else(tmp_path):
    (tmp_path / "text.h5").write_text("logits\n" * 1000)
    _refused(tmp_path / "text.h5", "damaged store")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    _refused(tmp_path / "other.h5", "damaged store")


@pytest.mark.parametrize("key", ABOUT)
def test_of_something_else(path, key):
    _refused(path, f"store of other logits: {key} is {ABOUT[key]}, expected another", about={**ABOUT, key: "another"})


def test_an_attribute_more_or_less(path):
    _refused(path, "plan is None, expected p", about={**ABOUT, "plan": "p"})
    _refused(path, "note is grüße, expected None", about={key: ABOUT[key] for key in ABOUT if key != "note"})


def test_another_shape_or_dtype(path):
    _refused(path, "float16 [30, 7], expected float16 [30, 8]", shape=(30, 8))
    _refused(path, "float16 [30, 7], expected float32 [30, 7]", dtype="float32")


@pytest.mark.parametrize("limit", [100, 70_000])
def test_a_full_disk_is_one_error_and_leaves_what_was_there(path, limit):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.write_store(path, np.zeros((1000, 100), np.float16), ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
