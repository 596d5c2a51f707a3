"""The reader of image folders: the list of their files, and one line for each wrong folder."""

import hashlib
import shutil
from pathlib import Path

import h5py
import pytest
import torch
from tree import SPEC, make_tree

from kdflow.core.errors import UserError
from kdflow.data import load, prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture
def tree(source, tmp_path):
    """A folder that may be damaged, with its dataset file tree.h5."""
    folder = tmp_path / "tree"
    shutil.copytree(source, folder)
    prepare("tree", SPEC, folder, tmp_path, tmp_path / "tree.h5")
    return folder


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(images):
    return [path.decode() for path in images.files.paths.tolist()]


def test_the_list_has_all_files_of_the_folder(source, tmp_path):
    digest = prepare("tree", SPEC, source, tmp_path, tmp_path / "tree.h5")
    loaded = load(tmp_path / "tree.h5", 12, CPU, 3)
    expected = hashlib.sha256()
    for part, images in (("train", loaded.train), ("val", loaded.test)):
        files = sorted(f for f in (source / part).rglob("*") if f.suffix != ".txt" and f.is_file())
        assert names(images) == [str(f.relative_to(source)) for f in files]
        assert images.labels.tolist() == [sorted(loaded.class_names).index(f.parent.name) for f in files]
        assert (len(images), images.image_size, images.workers, images.folder) == (len(files), 32, 3, source)
        for file, label in zip(files, images.labels.tolist(), strict=True):
            line = f"{file.relative_to(source)}\0{file.stat().st_size}\0{label}\n"
            expected.update(line.encode())
    expected.update("n01 dark\nn02 hell ä".encode())
    assert loaded.class_names == ["n01 dark", "n02 hell ä"]
    assert loaded.sha256 == digest == expected.hexdigest()
    assert (tmp_path / "tree.h5").stat().st_size < 30_000, "pixels are not copied"


def test_the_list_is_the_same_for_the_current_folder(source, tmp_path, monkeypatch):
    digest = prepare("tree", SPEC, source, tmp_path, tmp_path / "a.h5")
    monkeypatch.chdir(source)
    assert prepare("tree", SPEC, Path(), tmp_path, tmp_path / "b.h5") == digest


def test_a_copy_has_the_same_hash_and_a_changed_image_another_one(source, tree, tmp_path):
    digest = prepare("tree", SPEC, source, tmp_path, tmp_path / "a.h5")
    assert prepare("tree", SPEC, tree, tmp_path, tmp_path / "b.h5") == digest
    file = tree / "val/n01 dark/bild_0.JPEG"
    file.write_bytes(file.read_bytes() + b"\0")
    assert prepare("tree", SPEC, tree, tmp_path, tmp_path / "b.h5") != digest


def test_subsets_are_nested_and_balanced_and_unused_files_may_be_missing(tree, tmp_path):
    whole = load(tmp_path / "tree.h5", 12, CPU)
    smaller = load(tmp_path / "tree.h5", 5, CPU)
    assert set(names(smaller.train)) < set(names(whole.train))
    assert sorted(smaller.train.labels.bincount().tolist()) == [2, 3]
    assert names(smaller.test) == names(whole.test)
    left_out = set(names(whole.train)) - set(names(smaller.train))
    (tree / left_out.pop()).unlink()
    assert names(load(tmp_path / "tree.h5", 5, CPU).train) == names(smaller.train)


def _without_val(tree):
    shutil.rmtree(tree / "val")


def _flat(tree):
    shutil.rmtree(tree / "val")
    (tree / "val").mkdir()
    shutil.copy(tree / "train/n01 dark/bild_0.JPEG", tree / "val")


def _another_class(tree):
    (tree / "val/n03").mkdir()


def _missing_class(tree):
    shutil.rmtree(tree / "val/n02 hell ä")


def _empty_class(tree):
    for file in (tree / "train/n02 hell ä").iterdir():
        file.rename(file.with_suffix(".txt"))


def _missing_file(tree):
    (tree / "val/n01 dark/bild_0.JPEG").unlink()


def _third_class(tree):
    for part in ("train", "val"):
        shutil.copytree(tree / part / "n01 dark", tree / part / "n03")


def _gone(tree):
    shutil.rmtree(tree)


SOURCES = {
    _gone: "tree: no such folder",
    _without_val: "val: no such folder (expected train/<class>/ and val/<class>/)",
    _flat: "val: has no class folders (expected val/<class>/)",
    _another_class: "class n03 is in val/ but not in train/",
    _missing_class: "class n02 hell ä is in train/ but not in val/",
    _empty_class: "train/n02 hell ä: has no images (.jpg, ",
    _missing_file: "image_folder: test labels: expected 6, found [5]",
    _third_class: "image_folder: 3 class names found, expected 2",
}


@pytest.mark.parametrize("damage", SOURCES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_wrong_folder_is_refused_and_the_earlier_list_stays(tree, tmp_path, damage):
    out = tmp_path / "tree.h5"
    before = out.read_bytes()
    damage(tree)
    assert SOURCES[damage] in refused(lambda: prepare("tree", SPEC, tree, tmp_path, out))
    assert out.read_bytes() == before


def test_nothing_is_downloaded(tmp_path):
    assert refused(lambda: prepare("tree", SPEC, None, tmp_path, tmp_path / "t.h5")).startswith(
        "data_folder: is needed"
    )


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_missing_file_or_one_of_another_size_is_refused(tree, tmp_path, part):
    file = tree / part / "n02 hell ä/bild_1.JPEG"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    message = refused(lambda: load(tmp_path / "tree.h5", 12, CPU))
    assert message.startswith(f"{file}: has {len(content) - 1} bytes, {len(content)} when it was listed; `dvc repro")
    file.unlink()
    message = refused(lambda: load(tmp_path / "tree.h5", 12, CPU))
    assert message.startswith(f"{file}: No such file or directory, but it was listed")


@pytest.mark.parametrize("key", ["train/paths", "test/sizes", "train/labels"])
def test_a_changed_list_is_refused(tree, tmp_path, key):
    with h5py.File(tmp_path / "tree.h5", "r+") as file:
        values = file[key][:]
        values[[0, -1]] = values[[-1, 0]]
        values[2] = values[3]
        values[0] = values[1]
        file[key][:] = values if key != "train/labels" else 1 - values
    assert "differs from its hash" in refused(lambda: load(tmp_path / "tree.h5", 12, CPU))


@pytest.mark.parametrize("attribute", ["folder", "image_size"])
def test_a_list_without_its_folder_or_size_is_refused(tree, tmp_path, attribute):
    with h5py.File(tmp_path / "tree.h5", "r+") as file:
        del file.attrs[attribute]
    assert "damaged, or not a dataset file" in refused(lambda: load(tmp_path / "tree.h5", 12, CPU))
