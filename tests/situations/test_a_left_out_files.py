"""Files that are not read, and images that occur twice: both are counted and printed."""

import shutil

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from kdflow import config
from kdflow.config import UserFolder
from kdflow.data import user_folder

RECIPE = config.load_recipes(ROOT).user_folder


@pytest.fixture
def photos(tmp_path):
    """Train and val folders of two classes, without copies."""
    random = np.random.RandomState(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def _notes(photos, tmp_path):
    prepared = user_folder.prepare(UserFolder(folder=str(photos), image_size=32), RECIPE, tmp_path / "a.h5")
    return prepared.notes


def test_a_clean_folder_has_no_notes(photos, tmp_path):
    assert _notes(photos, tmp_path) == ()


def test_files_of_other_kinds_are_counted_by_ending(photos, tmp_path, capsys):
    for i in range(3):
        (photos / f"train/cat/{i}.xyz").touch()
    (photos / "val/dog/IMG_0001").touch()
    (photos / "val/dog/notes.TXT").touch()
    (photos / "val/dog/Thumbs.db").touch()
    assert _notes(photos, tmp_path) == ("5 files of other kinds left out (.xyz 3, no ending 1, .txt 1)",)
    assert f"{photos}: 5 files of other kinds left out" in capsys.readouterr().out


def test_a_test_image_that_is_a_copy_of_a_training_image_is_a_warning(photos, tmp_path, capsys):
    shutil.copy(photos / "train/cat/0.png", photos / "val/cat/copy.png")
    (expected,) = notes = _notes(photos, tmp_path)
    assert notes == (
        "warning: copies of training images among the test images: 1 (val/cat/copy.png = train/cat/0.png)",
    )
    assert expected in capsys.readouterr().out


def test_an_image_in_two_classes_is_a_warning(photos, tmp_path):
    shutil.copy(photos / "train/cat/0.png", photos / "train/dog/9.png")
    assert _notes(photos, tmp_path) == (
        "warning: images in more than one class: 1 (train/cat/0.png = train/dog/9.png)",
    )


def test_an_image_twice_in_a_class_is_counted(photos, tmp_path):
    shutil.copy(photos / "train/cat/0.png", photos / "train/cat/0 (1).png")
    shutil.copy(photos / "train/cat/0.png", photos / "train/cat/0 (2).png")
    assert _notes(photos, tmp_path) == (
        "copies of an image within its class: 2 (train/cat/0 (2).png = train/cat/0 (1).png, "
        "train/cat/0.png = train/cat/0 (1).png)",
    )


def test_copies_across_a_split_by_share_are_a_warning(photos, tmp_path):
    for name in ("cat", "dog"):
        (photos / name).mkdir()
        for i in range(4):
            shutil.copy(photos / f"train/{name}/{i}.png", photos / f"{name}/{i}.png")
            shutil.copy(photos / f"train/{name}/{i}.png", photos / f"{name}/{i} copy.png")
    shutil.rmtree(photos / "train")
    shutil.rmtree(photos / "val")
    across, within = _notes(photos, tmp_path)
    assert across.startswith("warning: copies of training images among the test images: 4 (")
    assert within.startswith("copies of an image within its class: 4 (")
