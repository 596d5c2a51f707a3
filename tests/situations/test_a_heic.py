"""Photos in HEIC, which need a plugin of Pillow, and in AVIF."""

import re
import shutil

import numpy as np
import pytest
from paths import ROOT
from PIL import Image, features

from kdflow import config
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import decode as decode_module
from kdflow.data import user_folder
from kdflow.data.decode import decode, formats

RECIPE = config.load_recipes(ROOT).user_folder
COLOURS = {"cat": (200, 30, 60), "dog": (20, 160, 90)}


def make_photos(folder, suffix, **options):
    """Write a folder of two classes, whose images have the class's colour and a gradient."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.full((48, 64, 3), colour, np.uint8)
            pixels[:, :, 2] = np.arange(64) + i
            Image.fromarray(pixels).save(folder / f"{name}/{i}{suffix}", **options)


def check(folder, suffix):
    prepared = user_folder.prepare(UserFolder(folder=str(folder), image_size=32), RECIPE, folder.parent / "a.h5")
    assert prepared.dataset.data.train_images + prepared.dataset.data.test_images == 10
    assert prepared.notes == ()
    for name, colour in COLOURS.items():
        pixels = np.asarray(decode(folder / f"{name}/0{suffix}")).astype(int)
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels[:, :, :2].mean((0, 1)) - colour[:2]).max() < 10


@pytest.fixture
def heif():
    """The plugin, in formats() for the time of a test."""
    plugin = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: pip install 'kdflow[heif]'")
    plugin.register_heif_opener()  # to write files
    formats.cache_clear()
    return plugin


def test_a_folder_of_heic_photos_is_read(tmp_path, heif):
    make_photos(tmp_path / "photos", ".heic", quality=95)
    check(tmp_path / "photos", ".heic")


def test_the_orientation_of_a_heic_photo_is_applied_once(tmp_path, heif):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image = Image.new("RGB", (64, 48), "red")
    image.paste("blue", (0, 0, 32, 48))
    for suffix in (".heic", ".jpg"):
        image.save(tmp_path / f"a{suffix}", exif=exif.tobytes(), quality=95)
    pixels = [np.asarray(decode(tmp_path / f"a{suffix}")).astype(int) for suffix in (".heic", ".jpg")]
    assert pixels[0].shape == pixels[1].shape == (64, 48, 3)
    assert np.abs(pixels[0] - pixels[1]).mean() < 5


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without libavif")
def test_a_folder_of_avif_photos_is_read(tmp_path):
    make_photos(tmp_path / "photos", ".avif", quality=95)
    check(tmp_path / "photos", ".avif")


def test_without_the_plugin_its_name_is_in_every_message(tmp_path, monkeypatch):
    without = {name: suffixes for name, suffixes in formats().items() if name != "HEIF"}
    for module in (decode_module, user_folder):
        monkeypatch.setattr(module, "formats", lambda: without)
    hint = "; `pip install 'kdflow[heif]'` makes HEIC readable"
    make_photos(tmp_path / "photos", ".png")
    (tmp_path / "photos/cat/IMG_1.HEIC").write_bytes(b"heic")
    source = UserFolder(folder=str(tmp_path / "photos"), image_size=32)
    notes = user_folder.prepare(source, RECIPE, tmp_path / "a.h5").notes
    assert notes == (f"1 file of other kinds left out (.heic 1){hint}",)
    with pytest.raises(UserError, match=rf"IMG_1\.HEIC: cannot be read as an image: .*{re.escape(hint)}"):
        decode(tmp_path / "photos/cat/IMG_1.HEIC")
    for name in COLOURS:
        shutil.rmtree(tmp_path / "photos" / name)
        (tmp_path / "photos" / name).mkdir()
        (tmp_path / "photos" / name / "IMG_1.heic").write_bytes(b"heic")
    with pytest.raises(UserError, match=rf"has no images .*{re.escape(hint)}"):
        user_folder.prepare(source, RECIPE, tmp_path / "a.h5")
