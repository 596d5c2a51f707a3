"""Images that are lines of pixels: their resized view would fill the memory."""

import resource
import subprocess
import sys

import pytest
from paths import ROOT
from PIL import Image

from kdflow import config
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import user_folder
from kdflow.data.decode import MAX_ASPECT, decode

RECIPE = config.load_recipes(ROOT).user_folder
PEAK = """
import resource, sys
from pathlib import Path
from kdflow.core.errors import UserError
from kdflow.data.decode import decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(Path(sys.argv[1]))
except UserError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
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


def test_the_longest_image_that_is_read_makes_a_small_view(tmp_path):
    Image.new("L", (MAX_ASPECT, 1)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == (MAX_ASPECT, 1)


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
