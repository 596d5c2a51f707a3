"""The cache of a user's images: made once, resumable, at the size that training needs, and recorded."""

import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from kdflow import config
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import cache, load, user_folder

RECIPE = config.load_recipes(config.PACKAGE.parent).user_folder
CPU = torch.device("cpu")
SIDE = 57  # of 16 px: 16 / sqrt(0.08), rounded up


@pytest.fixture
def photos(tmp_path):
    random = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            low = random.randint(0, 256, (6, 8, 3)).astype(np.uint8)
            image = Image.fromarray(low).resize((400, 300), Image.Resampling.BICUBIC)
            image.save(tmp_path / "photos" / name / f"{i}.jpg", quality=95)
        Image.fromarray(random.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(
            tmp_path / f"photos/{name}/small.png"
        )
    return tmp_path / "photos"


def _prepare(folder, out, **settings):
    source = UserFolder(folder=str(folder), image_size=16, **settings)
    return user_folder.prepare(source, RECIPE, out)


def _stored(folder):
    return {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}


def test_large_images_are_resized_once_and_small_ones_copied(photos, tmp_path):
    prepared = _prepare(photos, tmp_path / "a.h5", cache=True)
    assert prepared.notes[0] == f"cache: 10 of 12 images are resized to a shorter side of {SIDE} px"
    loaded = load(tmp_path / "a.h5", 8, CPU)
    folder = loaded.train.folder
    assert folder.is_relative_to(tmp_path / "cache") and folder.name == str(SIDE)
    stored = _stored(folder)
    assert len(stored) == 12
    for name, file in stored.items():
        if name.name == "small.png":
            assert file.read_bytes() == (photos / name).read_bytes()
        else:
            with Image.open(file) as image:
                assert (image.format, image.size) == ("PNG", (76, SIDE))
            expected = Image.open(photos / name).resize((76, SIDE), Image.Resampling.BILINEAR)
            assert np.abs(np.asarray(Image.open(file), float) - np.asarray(expected, float)).mean() < 2


def test_a_second_call_writes_only_what_is_missing_or_changed(photos, tmp_path):
    first = _prepare(photos, tmp_path / "a.h5", cache=True)
    files = _stored(tmp_path / "cache")
    times = {name: file.stat().st_ctime_ns for name, file in files.items()}
    missing, changed = sorted(name for name in files if name.suffix == ".jpg")[:2]
    files[missing].unlink()
    source = photos / changed.relative_to(*changed.parts[:2])
    os.utime(source, ns=(1, 10**9))
    assert _prepare(photos, tmp_path / "b.h5", cache=True) == first
    after = {name: file.stat().st_ctime_ns for name, file in _stored(tmp_path / "cache").items()}
    assert {name for name in after if after[name] != times[name]} == {missing, changed}


def test_an_interrupted_call_leaves_whole_files_only(photos, tmp_path, monkeypatch):
    calls, resize = [], cache._resized

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return resize(*arguments)

    monkeypatch.setattr(cache, "_resized", stops)
    with pytest.raises(KeyboardInterrupt):
        _prepare(photos, tmp_path / "a.h5", cache=True)
    monkeypatch.undo()
    for file in _stored(tmp_path / "cache").values():
        Image.open(file).load()
    assert not (tmp_path / "a.h5").exists()
    assert _prepare(photos, tmp_path / "a.h5", cache=True) == _prepare(photos, tmp_path / "b.h5", cache=True)


def test_it_is_recorded_and_changes_the_dataset_s_hash(photos, tmp_path):
    with_cache, without = _prepare(photos, tmp_path / "a.h5", cache=True), _prepare(photos, tmp_path / "b.h5")
    assert with_cache.source.cache and "cache" not in without.source.model_dump()
    assert with_cache.sha256 != without.sha256
    assert with_cache.class_names == without.class_names
    assert np.allclose(with_cache.base_view.mean, without.base_view.mean, atol=0.02)


def test_a_cache_of_small_images_changes_no_digit(photos, tmp_path):
    for file in photos.rglob("*.jpg"):
        Image.open(file).resize((50, 40)).save(file)
    with_cache, without = _prepare(photos, tmp_path / "a.h5", cache=True), _prepare(photos, tmp_path / "b.h5")
    assert with_cache.sha256 == without.sha256
    assert with_cache.base_view == without.base_view


def test_broken_and_special_files_are_as_without_a_cache(photos, tmp_path):
    (photos / "dog/broken.jpg").write_bytes(b"x")
    Image.fromarray(np.full((300, 300), 1000, np.uint16)).save(photos / "dog/grey.png")
    Image.new("RGBA", (300, 300), (1, 2, 3, 4)).save(photos / "cat/clear.png")
    with pytest.raises(UserError, match=r"1 of 15 images cannot be read: dog/broken\.jpg"):
        _prepare(photos, tmp_path / "a.h5", cache=True)
    prepared = [_prepare(photos, tmp_path / "a.h5", cache=one, skip_broken=True) for one in (True, False)]
    assert prepared[0].notes[1:] == prepared[1].notes
    assert prepared[0].base_view.grey16_max == 1000


def test_images_of_an_archive_and_of_a_map_with_other_folders(photos, tmp_path):
    (tmp_path / "maps").mkdir()
    rows = [f"../photos/{file.parent.name}/{file.name},{file.parent.name}" for file in sorted(photos.rglob("*.*g"))]
    (tmp_path / "maps/map.csv").write_text("\n".join(["path,label", *rows]))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(photos.rglob("*.*g")):
            archive.write(file, file.relative_to(photos))
    for path in (tmp_path / "maps/map.csv", tmp_path / "photos.zip"):
        prepared = _prepare(path, tmp_path / "a.h5", cache=True)
        assert prepared.notes[0].startswith("cache: 10 of 12 images")
        folder = load(tmp_path / "a.h5", 8, CPU).train.folder
        assert len(_stored(folder)) == 12
    assert set(_stored(tmp_path / "photos")) == {file.relative_to(photos) for file in photos.rglob("*.*g")}


def test_the_side_is_that_of_the_smallest_crop(photos):
    assert [cache.needed_side(size, 0, RECIPE) for size in (16, 64, 224)] == [SIDE, 227, 792]
    assert cache.needed_side(16, 100, RECIPE) == 100
    assert cache.needed_side(16, 18, RECIPE.model_copy(update={"area": None})) == 18
