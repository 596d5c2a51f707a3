"""Images of one's own: split, measured, and refused in a line."""

import shutil

import numpy as np
import pytest
from PIL import Image

from kdflow import config, own
from kdflow.config import Folder
from kdflow.errors import UserError


@pytest.fixture(scope="module")
def recipe():
    return config.load_recipes(config.PACKAGE.parent).own


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
    source = Folder(folder=str(photos), image_size=32)
    first = own.prepare(source, recipe, tmp_path / "a.h5")
    assert (first.data.train_images, first.data.test_images, first.data.classes) == (16, 4, 2)
    assert (first.name, first.class_names) == ("photos", ("cat ä", "dog"))
    elsewhere = tmp_path / "other/photos"
    shutil.copytree(photos, elsewhere)
    moved = own.prepare(source.model_copy(update={"folder": str(elsewhere)}), recipe, tmp_path / "b.h5")
    assert moved.model_copy(update={"source": source}) == first
    other = own.prepare(source.model_copy(update={"split_seed": 1}), recipe, tmp_path / "c.h5")
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
    found = own.prepare(Folder(folder=str(tmp_path / "parts"), image_size=32), flat, tmp_path / "a.h5")
    assert (found.data.train_images, found.data.test_images) == (18, 2)
    pixels = np.stack([np.asarray(Image.open(file)) for file in (tmp_path / "parts/train").rglob("*.png")]) / 255
    assert np.allclose(found.views.mean, pixels.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(found.views.std, pixels.std((0, 1, 2)), atol=1e-4)


def test_broken_files_are_all_listed_and_skipped_only_when_asked(photos, tmp_path, recipe):
    (photos / "dog/p0.jpg").write_bytes((photos / "dog/p0.jpg").read_bytes()[:500])
    (photos / "dog/eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    source = Folder(folder=str(photos), image_size=32)
    with pytest.raises(UserError, match=r"2 of 21 images cannot be read: dog/eps.jpg, dog/p0.jpg .*skip_broken: true"):
        own.prepare(source, recipe, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    assert len((tmp_path / "broken.txt").read_text().splitlines()) == 2
    found = own.prepare(source.model_copy(update={"skip_broken": True}), recipe, tmp_path / "a.h5")
    assert found.left_out == ("dog/eps.jpg", "dog/p0.jpg")
    assert found.data.train_images + found.data.test_images == 19


def test_a_class_that_cannot_be_split_is_named(photos, tmp_path, recipe):
    for file in sorted((photos / "dog").iterdir())[1:]:
        file.unlink()
    with pytest.raises(UserError, match="class dog: 1 images, none is left for training"):
        own.prepare(Folder(folder=str(photos), image_size=32), recipe, tmp_path / "a.h5")


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
