"""Folders as systems leave them: hidden files, archives of macOS, NAS thumbnails, and accents in two Unicode forms."""

import hashlib
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from tree import SPEC, make_tree

from kdflow import config
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import load, prepare, user_folder

RECIPE = config.load_recipes(ROOT).user_folder
CPU = torch.device("cpu")
DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "Äpfel é") for form in ("NFD", "NFC"))


def _fill(folder, count=5):
    folder.mkdir(parents=True)
    random = np.random.RandomState(int(hashlib.sha256(folder.name.encode()).hexdigest()[:6], 16))
    for i in range(count):
        Image.fromarray(random.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{i}.png")


def _clutter(folder):
    """Add to every folder what systems write there."""
    for path in [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]:
        for name in ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN"):
            (path / name / "0.png").mkdir(parents=True)
            (path / name / "thumb.jpg").write_bytes(b"a thumbnail that is no image")
        for name in ("Thumbs.db", "._0.png", "._0.JPEG", ".DS_Store", "desktop.ini"):
            (path / name).write_bytes(b"\0\5\26\7")


def _prepare(folder, tmp_path):
    return user_folder.prepare(UserFolder(folder=str(folder), image_size=32), RECIPE, tmp_path / "a.h5")


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_system_files_change_nothing(tmp_path, parts):
    for part in parts:
        for name in ("cats", "dogs"):
            _fill(tmp_path / "photos" / part / name, 5 if part != "val" else 4)
    before = _prepare(tmp_path / "photos", tmp_path)
    _clutter(tmp_path / "photos")
    assert _prepare(tmp_path / "photos", tmp_path) == before


def test_system_files_change_nothing_for_the_reader_of_image_folders(tmp_path):
    tree = make_tree(tmp_path / "tree")
    before = prepare("tree", SPEC, tree, tmp_path, tmp_path / "a.h5")
    _clutter(tree)
    assert prepare("tree", SPEC, tree, tmp_path, tmp_path / "b.h5") == before


def test_the_same_class_in_two_unicode_forms_is_one_class(tmp_path):
    photos = tmp_path / "photos"
    for part, name in (("train", DECOMPOSED), ("val", COMPOSED)):
        _fill(photos / part / name)
        _fill(photos / part / "zebra")
    prepared = _prepare(photos, tmp_path)
    assert prepared.class_names == ("zebra", COMPOSED)
    data = load(tmp_path / "a.h5", 10, CPU)
    assert data.class_names == ["zebra", COMPOSED]
    for images in (data.train, data.test):
        assert images.labels.tolist().count(1) == 5
        assert sum(len(batch) for batch in images.for_testing(4, prepared.base_view, slice(0, 10))) == 10


def test_the_same_class_in_two_unicode_forms_is_one_class_for_the_reader_of_image_folders(tmp_path):
    tree = make_tree(tmp_path / "tree")
    before = prepare("tree", SPEC, tree, tmp_path, tmp_path / "a.h5")
    (tree / "train/n02 hell ä").rename(tree / "train" / unicodedata.normalize("NFD", "n02 hell ä"))
    prepare("tree", SPEC, tree, tmp_path, tmp_path / "b.h5")
    assert load(tmp_path / "b.h5", 12, CPU).class_names == ["n01 dark", "n02 hell ä"]
    assert before


def test_two_folders_that_differ_in_the_unicode_form_only_are_refused(tmp_path):
    for name in (DECOMPOSED, COMPOSED, "zebra"):
        _fill(tmp_path / "photos" / name)
    with pytest.raises(UserError, match="two folders have the name Äpfel é/, with accents in two Unicode forms"):
        _prepare(tmp_path / "photos", tmp_path)


def test_the_split_is_the_same_for_both_unicode_forms(tmp_path):
    test_files = []
    for name in (DECOMPOSED, COMPOSED):
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        _fill(tmp_path / "photos" / "zebra", 10)
        _fill(tmp_path / "photos" / name, 10)
        _prepare(tmp_path / "photos", tmp_path)
        paths = load(tmp_path / "a.h5", 16, CPU).test.files.paths.tolist()
        test_files.append([unicodedata.normalize("NFC", path.decode()) for path in paths])
    assert sorted(test_files[0]) == sorted(test_files[1])


def test_whole_numbers_are_names_of_classes_and_their_order_is_printed(tmp_path, capsys):
    for number in range(12):
        _fill(tmp_path / "photos" / str(number))
    prepared = _prepare(tmp_path / "photos", tmp_path)
    assert prepared.class_names[:4] == ("0", "1", "10", "11")
    assert prepared.notes == ("classes are sorted as text, not as numbers: 0, 1, 10, 11, ...",)
    assert prepared.notes[0] in capsys.readouterr().out
    config.PreparedDataset.model_validate_json(prepared.model_dump_json())


def test_whole_numbers_of_one_length_need_no_note(tmp_path):
    for name in ("00", "01", "10"):
        _fill(tmp_path / "photos" / name)
    assert _prepare(tmp_path / "photos", tmp_path).notes == ()
