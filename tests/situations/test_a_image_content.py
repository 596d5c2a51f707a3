"""Images whose files have more than 8-bit RGB: grey of 16 bits, transparency, and an orientation."""

import zlib

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image, PngImagePlugin

from kdflow import config
from kdflow.config import BaseView, Resize, UserFolder
from kdflow.core.errors import UserError
from kdflow.data import load, user_folder
from kdflow.data.decode import decode, decode_and_inspect

RECIPE = config.load_recipes(ROOT).user_folder
ORIENTATION = 0x0112


def _save(folder, image_of, per_class=5, suffix="png"):
    """Write `per_class` images of each of two classes; `image_of(label, random)` makes one."""
    random = np.random.RandomState(0)
    for label, name in enumerate("ab"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            image_of(label, random).save(folder / name / f"{i}.{suffix}")
    return folder


def _prepare(folder, tmp_path):
    return user_folder.prepare(UserFolder(folder=str(folder), image_size=32), RECIPE, tmp_path / "a.h5")


def _grey16(largest):
    def image_of(label, random):
        values = random.randint(0, largest * (label + 1) // 2 + 1, (40, 40))
        values[20, 20] = largest
        return Image.fromarray(values.astype(np.uint16))

    return image_of


def _loaded_views(tmp_path, prepared):
    images = load(tmp_path / "a.h5", prepared.data.train_images, torch.device("cpu")).train
    return torch.cat(list(images.for_testing(4, prepared.base_view, slice(0, len(images)))))


@pytest.mark.parametrize("largest", [255, 4080, 65_535])
def test_grey_of_16_bits_is_scaled_by_the_largest_value_of_the_folder(tmp_path, largest):
    folder = _save(tmp_path / "scans", _grey16(largest))
    prepared = _prepare(folder, tmp_path)
    assert prepared.base_view.grey16_max == largest
    assert 0.2 < prepared.base_view.mean[0] < 0.6
    views = _loaded_views(tmp_path, prepared)
    assert len(views.unique()) > 100, "no more than 16 levels of a 12-bit scan were left"
    assert views.double().mean() / 255 == pytest.approx(prepared.base_view.mean[0], abs=1e-3)
    assert f"10 files with grey of 16 bits; the largest value, {largest:,}, becomes 255" in prepared.notes
    assert not [note for note in prepared.notes if note.startswith("warning")]


def test_a_value_above_the_largest_of_training_is_clipped_not_wrapped(tmp_path):
    Image.fromarray(np.array([[0, 100, 200, 4000]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(decode(tmp_path / "a.png", grey16_max=200))[0, :, 0].tolist() == [0, 128, 255, 255]


def test_grey_of_16_bits_without_a_measured_range_is_refused(tmp_path):
    Image.fromarray(np.full((4, 5), 300, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png: .*grey of 16 bits has no defined range, and base_view.grey16_max"):
        decode(tmp_path / "a.png")


def test_images_of_different_ranges_in_one_folder_are_a_warning(tmp_path):
    folder = _save(tmp_path / "scans", _grey16(4000))
    Image.fromarray(np.full((40, 40), 200, dtype=np.uint16)).save(folder / "a/dark.png")
    Image.fromarray(np.full((40, 40), 200, dtype=np.uint8)).save(folder / "b/narrow.png")
    warnings = [note for note in _prepare(folder, tmp_path).notes if note.startswith("warning")]
    assert len(warnings) == 2
    assert "11 of 12 have grey of 16 bits, the others have 8 bits (a/0.png, b/narrow.png)" in warnings[0]
    assert "the largest value is 200 in a/dark.png and 4,000 in" in warnings[1]


def test_colours_of_16_bits_are_counted(tmp_path):
    folder = _save(tmp_path / "photos", lambda _, random: _noise(random))
    data = (b"\0" + b"\x01\x02" * 3 * 40) * 40
    with (folder / "a/wide.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = (40).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
        PngImagePlugin.putchunk(file, b"IHDR", header)
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress(data))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    assert _prepare(folder, tmp_path).notes == (
        "warning: 1 file with colours of 16 bits, of which only the upper 8 are read (a/wide.png)",
    )


def _noise(random):
    return Image.fromarray(random.randint(0, 256, (40, 50, 3)).astype(np.uint8))


# --- transparency ------------------------------------------------------------------------------------------


def _icon(label, random):
    """Black pixels; the shape is in the alpha channel."""
    alpha = np.zeros((40, 40), np.uint8)
    alpha[label * 20 : label * 20 + 20, : random.randint(10, 40)] = 255
    return Image.merge("RGBA", [*Image.new("RGB", (40, 40)).split(), Image.fromarray(alpha)])


def test_icons_whose_shape_is_in_the_alpha_channel_are_composited_over_white(tmp_path):
    prepared = _prepare(_save(tmp_path / "icons", _icon), tmp_path)
    assert 0.4 < prepared.base_view.mean[0] < 0.9
    views = _loaded_views(tmp_path, prepared)
    assert views.amax((1, 2, 3)).tolist() == [255] * len(views)
    assert views.amin((1, 2, 3)).tolist() == [0] * len(views)
    assert prepared.notes[0] == "10 files with transparency, composited over white (a/0.png, a/1.png, a/2.png, ...)"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_every_kind_of_transparency_is_composited(tmp_path, mode):
    file = tmp_path / "a.png"
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (2, 1), 0)
        image.putpixel((1, 0), (0,) * (len(mode) - 1) + (255,))
        image.save(file)
    else:  # one value is transparent
        image = Image.new(mode, (2, 1), 0)
        if mode == "P":
            image.putpalette([0, 0, 0, 10, 10, 10])
        image.putpixel((1, 0), (10,) * 3 if mode == "RGB" else 1 if mode == "P" else 10)
        image.save(file, transparency=(0, 0, 0) if mode == "RGB" else 0)
    decoded = decode_and_inspect(file)
    assert decoded.transparent
    assert np.asarray(decoded.image)[0, 0].tolist() == [255] * 3
    assert np.asarray(decoded.image)[0, 1].max() <= 10


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    noise = _noise(np.random.RandomState(0))
    noise.convert("RGBA").save(tmp_path / "a.png")
    decoded = decode_and_inspect(tmp_path / "a.png")
    assert not decoded.transparent
    assert np.array_equal(np.asarray(decoded.image), np.asarray(noise))


# --- orientation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_the_orientation_of_a_photo_is_applied(tmp_path, suffix):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[:20, 30:], upright[20:, :30] = 255, 128, 60
    for orientation, operation in ((1, None), (6, 2), (3, 3), (8, 4), (2, 0)):  # operations that undo it
        stored = Image.fromarray(upright)
        if operation is not None:
            inverse = {2: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.ROTATE_270}
            stored = stored.transpose(inverse.get(operation, Image.Transpose.FLIP_LEFT_RIGHT))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        file = tmp_path / f"{orientation}.{suffix}"
        stored.save(file, exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
        shown = np.asarray(decode(file)).astype(int)
        assert shown.shape == upright.shape
        assert np.abs(shown - upright).mean() < 4, orientation


def test_training_and_test_see_the_photo_upright(tmp_path):
    folder = _save(tmp_path / "photos", lambda label, random: _noise(random), suffix="jpg")
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:30] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for i in range(5):
        Image.fromarray(stripes).transpose(Image.Transpose.ROTATE_90).save(folder / f"a/{i}.jpg", exif=exif)
    _prepare(folder, tmp_path)
    view = BaseView(crop=0, flip=False, resize=Resize(side=32, area=(1.0, 1.0)), mean=(0, 0, 0), std=(1, 1, 1))
    data = load(tmp_path / "a.h5", 8, torch.device("cpu"))
    for images in (data.train, data.test):
        rows = [i for i, label in enumerate(images.labels.tolist()) if label == 0]
        tested = torch.cat(list(images.for_testing(8, view, slice(0, len(images)))))[rows]
        trained = torch.cat(list(images.for_training([[[i, 7] for i in rows]], view)))
        for pixels in (tested, trained):
            assert pixels[:, :, :12].float().mean() > 250
            assert pixels[:, :, -12:].float().mean() < 5


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1\2"]
)
def test_damaged_exif_data_do_not_make_a_photo_unreadable(tmp_path, exif):
    noise = _noise(np.random.RandomState(0))
    noise.save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").size == noise.size


# --- pixels that carry nothing -----------------------------------------------------------------------------


def test_training_images_of_a_single_colour_and_equal_classes_are_warnings(tmp_path):
    folder = _save(tmp_path / "black", lambda *_: Image.new("RGB", (40, 40)))
    notes = _prepare(folder, tmp_path).notes
    assert any(note.startswith("warning: the training images have a single colour") for note in notes)
    assert "warning: class a: all 5 images are equal" in notes


def test_one_class_of_equal_images_is_a_warning(tmp_path):
    folder = _save(tmp_path / "mixed", lambda label, random: _noise(random) if label else Image.new("RGB", (40, 40)))
    notes = _prepare(folder, tmp_path).notes
    assert [note for note in notes if "equal" in note] == ["warning: class a: all 5 images are equal"]
