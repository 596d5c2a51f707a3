"""Images of one's own: split, measured, and refused in a line."""

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
    for place, name in enumerate(("dog", "cat ä")):
        for i, ending in enumerate(("jpg", "png", "webp", "gif", "bmp") * 2):
            file = tmp_path / "photos" / name / f"p{i}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = random.randint(0, 128, (40 + i, 50, 3)) + 100 * place
            Image.fromarray(noise.astype(np.uint8)).save(file)
    return tmp_path / "photos"


def test_a_tree_is_split_by_class_and_the_same_anywhere(photos, tmp_path, recipe):
    source = UserFolder(folder=str(photos), image_size=32)
    first = user_folder.prepare(source, recipe, tmp_path / "a.h5")
    assert (first.data.train_images, first.data.test_images, first.data.classes) == (16, 4, 2)
    assert (first.name, first.class_names) == ("photos", ("cat ä", "dog"))
    loaded = load(tmp_path / "a.h5", 16, torch.device("cpu"))
    assert [split.labels.bincount().tolist() for split in (loaded.train, loaded.test)] == [[8, 8], [2, 2]]
    elsewhere = tmp_path / "other/photos"
    shutil.copytree(photos, elsewhere)
    moved = user_folder.prepare(source.model_copy(update={"folder": str(elsewhere)}), recipe, tmp_path / "b.h5")
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
    told = source.model_copy(update={"side": 32})
    assert user_folder.prepare(told, recipe, tmp_path / "a.h5").base_view.resize.side == 32
    with pytest.raises(UserError, match="photos: side: 31 is less than image_size, 32"):
        config.settings_from_options("photos", UserFolder, {"folder": "x", "image_size": 32, "side": 31})


def test_broken_files_are_all_listed_and_skipped_only_when_asked(photos, tmp_path, recipe):
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


def test_settings_without_own_images_keep_their_hash_and_wrong_ones_are_one_line(tmp_path):
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


# --- what is a class, and what a part ----------------------------------------------------------------------


def in_parts(photos, train, test):
    """The same photos, a fifth of every class below `test`."""
    for name in ("dog", "cat ä"):
        for part, chosen in ((test, "p[01].*"), (train, "*")):
            (photos / part / name).mkdir(parents=True, exist_ok=True)
            for file in sorted((photos / name).glob(chosen)):
                file.rename(photos / part / name / file.name)
        (photos / name).rmdir()


@pytest.mark.parametrize(
    ("train", "test"), [("train", "val"), ("train", "test"), ("Train", "Valid"), ("TRAIN", "validation")]
)
def test_parts_by_the_names_that_others_give_them(photos, tmp_path, recipe, train, test):
    in_parts(photos, train, test)
    (photos / "docs").mkdir()
    found = user_folder.prepare(UserFolder(folder=str(photos), image_size=32), recipe, tmp_path / "a.h5")
    assert (found.class_names, found.data.train_images, found.data.test_images) == (("cat ä", "dog"), 16, 4)
    tested = load(tmp_path / "a.h5", 16, torch.device("cpu")).test.files.paths.tolist()
    assert {path.split(b"/")[0] for path in tested} == {test.encode()}


def _two_tests(photos):
    in_parts(photos, "train", "val")
    shutil.copytree(photos / "val", photos / "test")


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


def _name_that_is_no_utf8(photos):
    os.rename(os.fsencode(photos / "dog"), os.fsencode(photos) + b"/d\xf6g")  # noqa: PTH104


OTHER = {
    _two_tests: "train/ one of val/, valid/, validation/, test/ is needed, there is test/, train/, val/; a class",
    _no_test: "beside one train/ one of val/, valid/, validation/, test/ is needed, there is train/; a class",
    _train_as_class: "is needed, there is Train/; a class needs another name",
    _parts_of_other_names: "testing: no class, its images are in cat ä/, dog/...; expected <class>/*, or train/",
    _one_folder_too_many: "val: no class, its images are in cat ä/, dog/...; expected",
    _class_twice: "wolf: a link to a folder that is among these already",
    _parts_that_are_one: "val: a link to a folder that is among these already",
    _name_that_is_no_utf8: "d\\xf6g/: the name of a class must be UTF-8",
}


@pytest.mark.parametrize("change", OTHER, ids=lambda change: change.__name__.strip("_"))
def test_parts_are_never_taken_for_classes_nor_the_other_way_round(photos, tmp_path, recipe, change):
    change(photos)
    with pytest.raises(UserError) as caught:
        user_folder.prepare(UserFolder(folder=str(photos), image_size=32), recipe, tmp_path / "a.h5")
    assert OTHER[change] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hidden_folders_and_those_that_links_lead_back_to_are_left_out(photos, tmp_path, recipe):
    source = UserFolder(folder=str(photos), image_size=32)
    before = user_folder.prepare(source, recipe, tmp_path / "a.h5")
    shutil.copytree(photos / "dog", photos / ".git")
    shutil.copytree(photos / "dog", photos / "dog/.ipynb_checkpoints")
    (photos / "dog/all").symlink_to("../..")
    (photos / "dog/cats").symlink_to("../cat ä")
    assert user_folder.prepare(source, recipe, tmp_path / "b.h5") == before
    (tmp_path / "more").mkdir()
    shutil.copy(photos / "dog/p0.jpg", tmp_path / "more")
    (photos / "dog/more").symlink_to(tmp_path / "more")
    assert user_folder.prepare(source, recipe, tmp_path / "c.h5").data.train_images == 17


def test_a_link_to_nowhere_and_a_name_that_is_no_utf8_are_broken_files(photos, tmp_path, recipe):
    (photos / "dog/gone.jpg").symlink_to("nowhere.jpg")
    with open(os.fsencode(photos / "dog") + b"/p\xf60.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"no image")
    source = UserFolder(folder=str(photos), image_size=32)
    with pytest.raises(UserError, match=r"2 of 22 images cannot be read: dog/gone.jpg, dog/p\\xf60.jpg "):
        user_folder.prepare(source, recipe, tmp_path / "a.h5")
    found = user_folder.prepare(source.model_copy(update={"skip_broken": True}), recipe, tmp_path / "a.h5")
    assert json.loads(found.model_dump_json())["left_out"] == ["dog/gone.jpg", "dog/p\\xf60.jpg"]
    assert [line.split(": ")[0] for line in (tmp_path / "broken.txt").read_text().splitlines()] == list(found.left_out)
