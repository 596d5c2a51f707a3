"""A store returns the logits that were written, and refuses any other file."""

import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from runs import key_of
from small import METHODS, run_of

from kdflow.config import Precision
from kdflow.training.teacher_logits import store
from kdflow.training.teacher_logits.store import StoreError

KEY = {"teacher_sha256": "a" * 64, "dataset_sha256": "b" * 64, "view": "crop 4", "note": "grüße"}
LOGITS = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float16)


@pytest.fixture
def path(tmp_path) -> Path:
    store.write_store(tmp_path / "sub/x.h5", LOGITS, KEY)
    return tmp_path / "sub/x.h5"


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(st.sampled_from([np.float16, np.float32]), st.tuples(st.integers(1, 9), st.integers(1, 5))))
def test_written_logits_are_read_back(tmp_path_factory, logits):
    path = tmp_path_factory.mktemp("store") / "x.h5"
    store.write_store(path, logits, KEY)
    read = store.read_store(path, logits.shape, logits.dtype.name, KEY)
    assert read.tobytes() == logits.tobytes() and read.dtype == logits.dtype


def test_a_new_setting_with_its_usual_value_leaves_stores_valid():
    run = run_of(METHODS["kd"])
    usual = '{"fold_teacher":false,"teacher":"float32","tf32":false,"compile":"none"}'
    assert key_of(run)["precision"] == usual
    graph = run.model_copy(update={"precision": Precision(step="compile")})
    assert key_of(graph)["precision"] == usual  # a setting of the student's step
    assert graph.sha256 != run.sha256
    assert '"step"' not in run.model_dump_json()  # records and checkpoints of versions without it keep their hash
    other = run.model_copy(update={"precision": Precision(teacher_runtime="onnxruntime")})
    assert key_of(other)["precision"] == usual[:-1] + ',"teacher_runtime":"onnxruntime"}'


def test_a_store_is_an_hdf5_file_with_attributes(path):
    with h5py.File(path) as file:
        assert file["logits"].chunks is None
        assert np.array_equal(file["logits"][:], LOGITS)
        assert {name: file.attrs[name] for name in KEY} == KEY
        assert len(file.attrs["sha256"]) == 64
    assert list(path.parent.iterdir()) == [path]


def test_logits_are_memory_mapped_and_read_only(path):
    read = store.read_store(path, LOGITS.shape, "float16", KEY)
    with pytest.raises(ValueError, match="read-only"):
        read[0, 0] = 1


def test_a_missing_file_raises_another_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        store.read_store(tmp_path / "none.h5", LOGITS.shape, "float16", KEY)


def _refused(path: Path, reason: str, shape=LOGITS.shape, dtype="float16", key=KEY) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        store.read_store(path, shape, dtype, key)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and reason in message, message
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _refused(path, "damaged store")


def test_every_flipped_byte_of_the_logits_is_noticed(path):
    content = path.read_bytes()
    start = content.index(LOGITS.tobytes())
    for position in range(start, start + LOGITS.nbytes, 37):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        _refused(path, "differs from its hash")


def test_a_wrong_hash_is_noticed(path):
    with h5py.File(path, "r+") as file:
        file.attrs.modify("sha256", np.bytes_("0" * 64))
    _refused(path, "differs from its hash")


def test_text_and_other_hdf5_files_are_refused(tmp_path):
    (tmp_path / "text.h5").write_text("logits\n" * 1000)
    _refused(tmp_path / "text.h5", "damaged store")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros(3)
    _refused(tmp_path / "other.h5", "damaged store")


@pytest.mark.parametrize("name", KEY)
def test_another_key_is_refused(path, name):
    _refused(path, f"store of other logits: {name} is {KEY[name]}, expected another", key={**KEY, name: "another"})


def test_missing_and_additional_attributes_are_refused(path):
    _refused(path, "plan is None, expected p", key={**KEY, "plan": "p"})
    _refused(path, "note is grüße, expected None", key={name: KEY[name] for name in KEY if name != "note"})


def test_another_shape_or_dtype_is_refused(path):
    _refused(path, "float16 [30, 7], expected float16 [30, 8]", shape=(30, 8))
    _refused(path, "float16 [30, 7], expected float32 [30, 7]", dtype="float32")


@pytest.mark.parametrize("limit", [100, 70_000])
def test_a_full_disk_raises_an_error_and_leaves_the_earlier_file(path, limit):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.write_store(path, np.zeros((1000, 100), np.float16), KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
