"""The first commands and the program of docs/user-images.md, as they are written there, on real photos."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PAGE = (ROOT / "docs/user-images.md").read_text()
COMMANDS = re.search(r"```bash\n(kdflow distill.*?)```", PAGE, re.DOTALL)[1]
CLASSIFY = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]  # needs neither kdflow nor torch
CLASSIFY += '\nassert "kdflow" not in sys.modules and "torch" not in sys.modules\n'

CLASSES = {
    "n01443537": "goldfish",
    "n02165456": "ladybug",
    "n02279972": "monarch",
    "n04146614": "school_bus",
    "n07753592": "banana",
}
TEST_IMAGES = 250


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recipes and the page's photos: of five classes of Tiny ImageNet, 100 and 50 photos each."""
    if not (source := os.environ.get("KDFLOW_TINY_IMAGENET")):
        pytest.skip("KDFLOW_TINY_IMAGENET is not set to the folder tiny-imagenet-200/")
    folder = tmp_path_factory.mktemp("photos")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    files = {
        f"train/{name}": sorted(Path(source, "train", key, "images").iterdir())[:100] for key, name in CLASSES.items()
    }
    for line in Path(source, "val/val_annotations.txt").read_text().splitlines():
        file, key = line.split("\t")[:2]
        if key in CLASSES:
            files.setdefault(f"val/{CLASSES[key]}", []).append(Path(source, "val/images", file))
    for name, paths in files.items():
        (folder / "photos" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / "photos" / name)
    return folder


def run(folder, *command):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def true_verdict(folder):
    """Return the beginning of the verdict that follows from the images that each student predicts right."""
    distilled, alone = (json.loads((folder / f"records/{method}/seed0.json").read_text()) for method in ("kd", "ce"))
    bits = [int(record["correct"], 16) for record in (distilled, alone)]
    only = [(a & ~b).bit_count() for a, b in (bits, bits[::-1])]
    for record, right in zip((distilled, alone), bits, strict=True):
        assert record["final"]["top1"] == pytest.approx(100 * right.bit_count() / TEST_IMAGES)
    if min(right.bit_count() for right in bits) / TEST_IMAGES <= 0.2 + 2 * math.sqrt(0.2 * 0.8 / TEST_IMAGES):
        return "No verdict on distillation: "
    if abs(only[0] - only[1]) <= 2 * math.sqrt(sum(only)):
        return "The gain of distillation is within noise: "
    return f"Distillation {'improved' if only[0] > only[1] else 'reduced'} accuracy: "


@pytest.mark.slow
def test_the_commands_of_the_page_run_and_end_with_a_true_verdict(folder):
    output = run(folder, "sh", "-ec", COMMANDS)
    assert "Not a full run" in output
    assert any(line.startswith(true_verdict(folder / "small")) for line in output.splitlines())
    report = json.loads((folder / "small.onnx.json").read_text())
    assert report["verification"]["images"] == TEST_IMAGES

    images = sorted(str(file.relative_to(folder)) for file in folder.glob("photos/val/*/*"))
    assert len(images) == TEST_IMAGES
    assert all(image in output for image in images)
    without_kdflow = run(folder, sys.executable, "-c", CLASSIFY, "small.onnx", *images)
    predictions = json.loads(run(folder, "kdflow", "predict", *images, "--model", "small.onnx", "--json"))
    expected = [f"{one['image']} {[name for name, _ in one['classes']]}" for one in predictions]
    assert without_kdflow.splitlines() == expected
