"""Images that are lines of pixels: their resized view would fill the memory."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from kdflow import config
from kdflow.config import BaseView, Resize, UserFolder
from kdflow.core.errors import UserError
from kdflow.data import user_folder
from kdflow.data.decode import MAX_ASPECT, decode
from kdflow.data.image_files import transforms

RECIPE = config.load_recipes(ROOT).user_folder
PEAK = """
import re, sys
from pathlib import Path
from kdflow.core.errors import UserError
from kdflow.data.decode import decode

def peak():  # not getrusage: its peak begins with that of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
try:
    decode(Path(sys.argv[1]))
except UserError as error:
    print(error)
print((peak() - before) // 1024)
"""


SIZES = [(300_000, 1), (60_000, 2), (1, 40_000_000)]


@pytest.mark.parametrize("size", SIZES)
def test_a_line_of_pixels_is_refused(tmp_path, size):
    Image.new("1", size).save(tmp_path / "line.png")
    with pytest.raises(UserError) as caught:
        decode(tmp_path / "line.png")
    expected = f"{size[0]} x {size[1]} pixels: one side is over {MAX_ASPECT} times the other"
    assert str(caught.value).endswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_line_of_pixels_takes_no_memory(tmp_path, size):
    Image.new("1", size).save(tmp_path / "line.png")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "line.png")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 50


@pytest.mark.parametrize("size", [(MAX_ASPECT, 1), (1, MAX_ASPECT)])
def test_the_longest_image_that_is_read_is_cropped_before_it_is_enlarged(tmp_path, monkeypatch, size):
    Image.new("L", size, 90).save(tmp_path / "a.png")
    resized = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: resized.append(size) or resize(self, size, *a, **k)
    )
    view = evaluation_view(decode(tmp_path / "a.png"), side=512, size=448)
    assert view.shape == (3, 448, 448) and (view == 90).all()
    assert [width * height for width, height in resized] == [3 * 512**2]


def evaluation_view(image, side, size):
    base_view = BaseView(crop=0, flip=False, mean=(0.5,) * 3, std=(0.2,) * 3, resize=Resize(side=side, area=None))
    return transforms(base_view, size, training=False)(image)


@pytest.mark.parametrize("sides", [(400, 100), (90, 360), (60, 61), (33, 100)])
def test_an_image_of_usual_shape_is_resized_whole(sides):
    image = _noise(sides)
    usual = v2.Compose([v2.Resize(72), v2.CenterCrop(64), v2.PILToTensor()])(image)
    assert torch.equal(evaluation_view(image, 72, 64), usual)


@pytest.mark.parametrize("sides", [(1003, 100), (90, 3601), (60, 320)])
def test_a_long_image_has_the_view_of_the_whole_one(sides):
    image = _noise(sides).filter(ImageFilter.GaussianBlur(3))
    usual = v2.Compose([v2.Resize(72), v2.CenterCrop(64), v2.PILToTensor()])(image)
    difference = (evaluation_view(image, 72, 64).float() - usual.float()).abs()
    assert difference.mean() < 2  # of 255; the crop may lie half a pixel beside


def _noise(sides):
    pixels = np.random.default_rng(0).integers(256, size=(sides[1], sides[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_extreme_shape_is_a_broken_file(tmp_path):
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40 + i, 40), (i, 0, 9)).save(tmp_path / "photos" / name / f"{i}.png")
    Image.new("1", (300_000, 1)).save(tmp_path / "photos/a/line.png")
    source = UserFolder(folder=str(tmp_path / "photos"), image_size=32)
    with pytest.raises(UserError, match=r"1 of 7 images cannot be read: a/line.png .*--skip-broken"):
        user_folder.prepare(source, RECIPE, tmp_path / "a.h5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = user_folder.prepare(source.model_copy(update={"skip_broken": True}), RECIPE, tmp_path / "a.h5")
    assert found.left_out == ("a/line.png",)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
