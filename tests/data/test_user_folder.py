"""User folders: split by class, measured, and refused in one line."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from kdflow import config
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import load, user_folder


@pytest.fixture(scope="module")
def recipe():
    return config.load_recipes(config.PACKAGE.parent).user_folder


@pytest.fixture
def photos(tmp_path):
    random = np.random.RandomState(0)
    for label, name in enumerate(("dog", "cat ä")):
        for i, suffix in enumerate(("jpg", "png", "webp", "gif", "bmp") * 2):
            file = tmp_path / "photos" / name / f"p{i}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = random.randint(0, 128, (40 + i, 50, 3)) + 100 * label
            Image.fromarray(noise.astype(np.uint8)).save(file)
    return tmp_path / "photos"


def test_a_folder_is_split_by_class_and_has_the_same_hash_after_a_move(photos, tmp_path, recipe):
    source = UserFolder(folder=str(photos), image_size=32)
    first = user_folder.prepare(source, recipe, tmp_path / "a.h5")
    assert (first.data.train_images, first.data.test_images, first.data.classes) == (16, 4, 2)
    assert (first.name, first.class_names) == ("photos", ("cat ä", "dog"))
    loaded = load(tmp_path / "a.h5", 16, torch.device("cpu"))
    assert [split.labels.bincount().tolist() for split in (loaded.train, loaded.test)] == [[8, 8], [2, 2]]
    other_folder = tmp_path / "other/photos"
    shutil.copytree(photos, other_folder)
    moved = user_folder.prepare(source.model_copy(update={"folder": str(other_folder)}), recipe, tmp_path / "b.h5")
    assert moved.model_copy(update={"source": source}) == first
    assert UserFolder(folder=f"{photos}/dog/..", image_size=32).name == "photos"
    other = user_folder.prepare(source.model_copy(update={"split_seed": 1}), recipe, tmp_path / "c.h5")
    assert other.sha256 != first.sha256


def test_mean_and_deviation_are_those_of_the_training_images(photos, tmp_path, recipe):
    for name in ("dog", "cat ä"):
        for part, chosen in (("val", "p0.jpg"), ("train", "*")):
            for file in sorted((photos / name).glob(chosen)):
                target = tmp_path / "parts" / part / name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.open(file).convert("RGB").resize((32, 32)).save(target.with_suffix(".png"))
                file.unlink()
    flat = recipe.model_copy(update={"side": 1.0})
    found = user_folder.prepare(UserFolder(folder=str(tmp_path / "parts"), image_size=32), flat, tmp_path / "a.h5")
    assert (found.data.train_images, found.data.test_images) == (18, 2)
    pixels = np.stack([np.asarray(Image.open(file)) for file in (tmp_path / "parts/train").rglob("*.png")]) / 255
    assert np.allclose(found.base_view.mean, pixels.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(found.base_view.std, pixels.std((0, 1, 2)), atol=1e-4)


def test_the_shorter_side_is_a_setting(photos, tmp_path, recipe):
    source = UserFolder(folder=str(photos), image_size=32)
    assert user_folder.prepare(source, recipe, tmp_path / "a.h5").base_view.resize.side == 37
    with_side = source.model_copy(update={"side": 32})
    assert user_folder.prepare(with_side, recipe, tmp_path / "a.h5").base_view.resize.side == 32
    with pytest.raises(UserError, match="photos: side: 31 is less than image_size, 32"):
        config.settings_from_options("photos", UserFolder, {"folder": "x", "image_size": 32, "side": 31})


def test_broken_files_are_listed_and_left_out_only_if_skip_broken_is_set(photos, tmp_path, recipe):
    (photos / "dog/p0.jpg").write_bytes((photos / "dog/p0.jpg").read_bytes()[:500])
    (photos / "dog/eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    source = UserFolder(folder=str(photos), image_size=32)
    with pytest.raises(UserError, match=r"2 of 21 images cannot be read: dog/eps.jpg, dog/p0.jpg .*skip_broken: true"):
        user_folder.prepare(source, recipe, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    assert len((tmp_path / "broken.txt").read_text().splitlines()) == 2
    found = user_folder.prepare(source.model_copy(update={"skip_broken": True}), recipe, tmp_path / "a.h5")
    assert found.left_out == ("dog/eps.jpg", "dog/p0.jpg")
    assert found.data.train_images + found.data.test_images == 19


def test_a_class_that_cannot_be_split_is_named(photos, tmp_path, recipe):
    for file in sorted((photos / "dog").iterdir())[1:]:
        file.unlink()
    with pytest.raises(UserError, match="class dog: 1 images, none is left for training"):
        user_folder.prepare(UserFolder(folder=str(photos), image_size=32), recipe, tmp_path / "a.h5")


def test_wrong_settings_of_a_user_folder_are_one_line_each(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    shutil.copytree(config.PACKAGE.parent / "recipes", root / "recipes")
    text = (config.PACKAGE.parent / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("dataset: digits", "dataset: {folder: photos, image_sise: 3}"))
    with pytest.raises(UserError) as caught:
        config.load(root)
    lines = str(caught.value).splitlines()
    assert any("dataset.image_size: Field required" in line for line in lines), lines
    assert any("dataset.image_sise: unknown key; did you mean 'image_size'?" in line for line in lines), lines
    (root / "params.yaml").write_text(text.replace("dataset: digits", "dataset: {folder: photos, image_size: 32}"))
    with pytest.raises(UserError, match="is not prepared yet"):
        _ = config.load(root).dataset


# --- classes and parts -------------------------------------------------------------------------------------


def in_parts(photos, train, test):
    """Move a fifth of each class to the folder `test` and the others to `train`."""
    for name in ("dog", "cat ä"):
        for part, chosen in ((test, "p[01].*"), (train, "*")):
            (photos / part / name).mkdir(parents=True, exist_ok=True)
            for file in sorted((photos / name).glob(chosen)):
                file.rename(photos / part / name / file.name)
        (photos / name).rmdir()


@pytest.mark.parametrize(
    ("train", "test"), [("train", "val"), ("train", "test"), ("Train", "Valid"), ("TRAIN", "validation")]
)
def test_usual_names_of_parts_are_recognised(photos, tmp_path, recipe, train, test):
    in_parts(photos, train, test)
    (photos / "docs").mkdir()
    found = user_folder.prepare(UserFolder(folder=str(photos), image_size=32), recipe, tmp_path / "a.h5")
    assert (found.class_names, found.data.train_images, found.data.test_images) == (("cat ä", "dog"), 16, 4)
    tested = load(tmp_path / "a.h5", 16, torch.device("cpu")).test.files.paths.tolist()
    assert {path.split(b"/")[0] for path in tested} == {test.encode()}


def _two_tests(photos):
    in_parts(photos, "train", "val")
    shutil.copytree(photos / "val", photos / "valid")


def _no_test(photos):
    in_parts(photos, "train", "holdout")


def _train_as_class(photos):
    shutil.copytree(photos / "dog", photos / "Train")


def _parts_of_other_names(photos):
    in_parts(photos, "training", "testing")


def _one_folder_too_many(photos):
    (photos / "val").mkdir()
    for name in ("dog", "cat ä"):
        shutil.copytree(photos / name, photos / "val" / name)


def _class_twice(photos):
    (photos / "wolf").symlink_to("dog")


def _parts_that_are_one(photos):
    in_parts(photos, "train", "gone")
    (photos / "val").symlink_to("train")


def _name_that_is_not_utf8(photos):
    os.rename(os.fsencode(photos / "dog"), os.fsencode(photos) + b"/d\xf6g")  # noqa: PTH104


REFUSED = {
    _two_tests: "with one of val/, valid/, validation/, with test/ or with both, found train/, val/, valid/",
    _no_test: "expected train/ alone, or with one of val/, valid/, validation/, with test/ or with both, found ",
    _train_as_class: "or with both, found Train/, cat ä/, dog/; rename a class of such a name",
    _parts_of_other_names: "testing: is not a class, its images are in cat ä/, dog/...; expected <class>/*, or train/",
    _one_folder_too_many: "val: is not a class, its images are in cat ä/, dog/...; expected",
    _class_twice: "wolf: is a link to another folder of this dataset",
    _parts_that_are_one: "val: is a link to another folder of this dataset",
    _name_that_is_not_utf8: "d\\xf6g/: the name of a class must be UTF-8",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__.strip("_"))
def test_parts_and_classes_are_never_confused(photos, tmp_path, recipe, change):
    change(photos)
    with pytest.raises(UserError) as caught:
        user_folder.prepare(UserFolder(folder=str(photos), image_size=32), recipe, tmp_path / "a.h5")
    assert REFUSED[change] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hidden_folders_and_links_to_other_classes_are_left_out(photos, tmp_path, recipe):
    source = UserFolder(folder=str(photos), image_size=32)
    before = user_folder.prepare(source, recipe, tmp_path / "a.h5")
    shutil.copytree(photos / "dog", photos / ".git")
    shutil.copytree(photos / "dog", photos / "dog/.ipynb_checkpoints")
    (photos / "dog/all").symlink_to("../..")
    (photos / "dog/cats").symlink_to("../cat ä")
    with_links = user_folder.prepare(source, recipe, tmp_path / "b.h5")
    assert with_links.notes == ("1 file of other kinds left out (.h5 1)",)  # the link leads to the dataset file too
    assert with_links.model_copy(update={"notes": ()}) == before
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "dog/p0.jpg", tmp_path / "more")
    (photos / "dog/more").symlink_to(tmp_path / "more")
    assert user_folder.prepare(source, recipe, tmp_path / "c.h5").data.train_images == 17


def test_a_broken_link_and_a_damaged_file_whose_name_is_not_utf8_are_broken_files(photos, tmp_path, recipe):
    (photos / "dog/gone.jpg").symlink_to("nowhere.jpg")
    with open(os.fsencode(photos / "dog") + b"/p\xf60.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"not an image")
    source = UserFolder(folder=str(photos), image_size=32)
    with pytest.raises(UserError, match=r"2 of 22 images cannot be read: dog/gone.jpg, dog/p\\xf60.jpg "):
        user_folder.prepare(source, recipe, tmp_path / "a.h5")
    found = user_folder.prepare(source.model_copy(update={"skip_broken": True}), recipe, tmp_path / "a.h5")
    assert json.loads(found.model_dump_json())["left_out"] == ["dog/gone.jpg", "dog/p\\xf60.jpg"]
    assert [line.split(": ")[0] for line in (tmp_path / "broken.txt").read_text().splitlines()] == list(found.left_out)
