"""Dataset files: read as written, or refused in one line."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError
from kdflow.data import Split, Splits, balanced_order, largest_class, load, prepare, write
from kdflow.data.readers import digits

SPEC = DatasetSource(reader="digits", classes=10, image_size=8, train_images=100, test_images=1697)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    out = folder / "digits.h5"
    return out, prepare("digits", SPEC, None, folder, out)


def _refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path, 100, CPU)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_roundtrip(prepared):
    out, digest = prepared
    splits = digits.read(SPEC, None, out.parent)
    loaded = load(out, 100, CPU)
    assert loaded.sha256 == digest
    for name in ("train", "test"):
        split, images = getattr(splits, name), getattr(loaded, name)
        assert len(images) == len(split.labels)
        assert images.images.dtype == torch.uint8
        assert images.labels.dtype == torch.int64
        assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), split.images)
        assert images.images.is_contiguous(memory_format=torch.channels_last)
        assert images.labels.tolist() == split.labels.tolist()


def test_prepare_again_gives_the_same_hash_and_leaves_no_other_file(prepared, tmp_path):
    out = tmp_path / "sub" / "digits.h5"
    for _ in range(2):
        assert prepare("digits", SPEC, None, tmp_path, out) == prepared[1]
    assert [file.name for file in out.parent.iterdir()] == ["digits.h5"]


def test_hash_depends_on_the_content(prepared, tmp_path):
    other = SPEC.model_copy(update={"train_images": 110, "test_images": 1687})
    assert prepare("digits", other, None, tmp_path, tmp_path / "d.h5") != prepared[1]


# --- subsets -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_every_prefix_of_the_order_is_balanced(labels):
    order = balanced_order(np.array(labels, dtype=np.int64)).tolist()
    assert sorted(order) == list(range(len(labels)))
    total = Counter(labels)
    seen = dict.fromkeys(total, 0)
    for i in order:
        seen[labels[i]] += 1
        most = max(seen.values())
        for label, count in seen.items():
            assert count >= min(total[label], most - 1)


def test_the_order_is_fixed_and_random_within_a_class():
    labels = np.repeat(np.arange(4), 25)
    order = balanced_order(labels)
    assert order.tolist() == balanced_order(labels).tolist()
    for label in range(4):
        of_class = [i for i in order.tolist() if labels[i] == label]
        assert of_class != sorted(of_class)


def _rows(images) -> list[tuple[bytes, int]]:
    pairs = zip(images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist(), strict=True)
    return [(np.ascontiguousarray(image).tobytes(), label) for image, label in pairs]


def test_subsets_are_balanced_nested_and_in_file_order(prepared):
    out, digest = prepared
    larger = _rows(load(out, 100, CPU).train)
    for count in (73, 50, 12, 10, 1):
        loaded = load(out, count, CPU)
        rows = _rows(loaded.train)
        assert len(rows) == count
        assert len(loaded.test) == 1697
        assert loaded.sha256 == digest
        per_class = Counter(label for _, label in rows)
        assert max(per_class.values()) - min(per_class[label] for label in range(10)) <= 1
        assert not Counter(rows) - Counter(larger)
        remaining = iter(larger)
        assert all(row in remaining for row in rows)  # a subsequence: in file order
        larger = rows


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["train/images", "test/images", "train/labels", "test/labels"])
def test_flipped_byte_of_the_content_is_refused(prepared, tmp_path, key):
    with h5py.File(prepared[0]) as file:
        offset, size = file[key].id.get_offset(), file[key].id.get_storage_size()
    content = bytearray(prepared[0].read_bytes())
    content[offset + size // 2] ^= 1
    path = tmp_path / "flipped.h5"
    path.write_bytes(content)
    assert "hash" in _refused(path)


def test_largest_class_is_the_accuracy_of_the_most_frequent_class(prepared):
    labels = load(prepared[0], 100, CPU).test.labels.tolist()
    assert largest_class(prepared[0]) == pytest.approx(100 * max(Counter(labels).values()) / len(labels))


def test_changed_class_name_is_refused(prepared, tmp_path):
    path = tmp_path / "renamed.h5"
    path.write_bytes(prepared[0].read_bytes())
    with h5py.File(path, "r+") as file:
        file["class_names"][9] = "x"
    assert "hash" in _refused(path)


def test_any_number_of_classes_and_a_file_of_an_older_version(prepared, tmp_path):
    names = [f"class {number:05}" for number in range(9000)]
    labels = np.arange(9000)
    split = Split(np.zeros((9000, 1, 1, 3), dtype=np.uint8), labels)
    write("many", 1, Splits(split, split, names), tmp_path / "many.h5")
    assert load(tmp_path / "many.h5", 9000, CPU).class_names == names
    path = tmp_path / "older.h5"
    path.write_bytes(prepared[0].read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["classes"] = list(file["class_names"].asstr()[:])
        del file["class_names"]
    assert load(path, 100, CPU).class_names == load(prepared[0], 100, CPU).class_names


@pytest.mark.parametrize("missing", ["train/images", "test/labels", "sha256", "class_names"])
def test_missing_part_is_refused(prepared, tmp_path, missing):
    path = tmp_path / "partial.h5"
    path.write_bytes(prepared[0].read_bytes())
    with h5py.File(path, "r+") as file:
        del (file.attrs if missing == "sha256" else file)[missing]
    _refused(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file_is_refused(prepared, tmp_path, share):
    content = prepared[0].read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(content[: int(len(content) * share)])
    _refused(path)


def _a_group(file: h5py.File) -> None:
    del file["train/images"]
    file.create_group("train/images")


def _a_scalar(file: h5py.File) -> None:
    del file["test/labels"]
    file["test/labels"] = 3


def _a_type(file: h5py.File) -> None:
    del file["test/images"]
    file["test/images"] = np.dtype("u1")


def _numbers_for_names(file: h5py.File) -> None:
    del file["class_names"]
    file["class_names"] = np.arange(10)


def _one_number_for_names(file: h5py.File) -> None:
    del file["class_names"]
    file["class_names"] = 10


def _names_that_are_not_utf8(file: h5py.File) -> None:
    del file["class_names"]
    file["class_names"] = np.array([b"\xb4"] * 10, dtype=h5py.string_dtype("utf-8"))


@pytest.mark.parametrize(
    "damage",
    [_a_group, _a_scalar, _a_type, _numbers_for_names, _one_number_for_names, _names_that_are_not_utf8],
)
def test_parts_of_another_kind_are_refused(prepared, tmp_path, damage):
    """Flipped bytes in the file's structure can give such parts."""
    path = tmp_path / "changed.h5"
    path.write_bytes(prepared[0].read_bytes())
    with h5py.File(path, "r+") as file:
        damage(file)
    _refused(path)


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "text.h5"
    path.write_text("not HDF5\n" * 1000)
    _refused(path)


def test_another_hdf5_file_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["something"] = np.zeros(3)
    _refused(path)


def test_missing_file_is_refused(tmp_path):
    assert "dvc repro" in _refused(tmp_path / "nowhere.h5")


def test_folder_is_refused(tmp_path):
    _refused(tmp_path)


FULL_DISK = """
import resource
import sys
from pathlib import Path

import sklearn.datasets

from kdflow.config import DatasetSource
from kdflow.data import prepare
from kdflow.core.errors import exit_on_user_error

out = Path(sys.argv[1])
earlier = out.read_bytes()
spec = DatasetSource(reader="digits", classes=10, image_size=8, train_images=120, test_images=1677)
for left in (0, 1000, 200_000, 320_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.RLIM_INFINITY))
    try:
        with exit_on_user_error():
            prepare("digits", spec, None, out.parent, out)
    except SystemExit as end:
        assert end.code == 1
    else:
        raise AssertionError(f"{left} bytes were enough")
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    assert out.read_bytes() == earlier
"""


def test_full_disk_is_one_line_and_the_earlier_file_stays(prepared, tmp_path):
    out = tmp_path / "digits.h5"
    out.write_bytes(prepared[0].read_bytes())
    result = subprocess.run([sys.executable, "-c", FULL_DISK, str(out)], capture_output=True, text=True, check=False)
    lines = result.stderr.splitlines()
    assert result.returncode == 0, result.stderr
    assert len(lines) == 4, lines
    assert all(line.startswith("error: ") for line in lines)
