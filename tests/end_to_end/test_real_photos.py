"""The commands and the program of docs/user-images.md on real photos."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from PIL import Image

CLASSES, TRAIN, VAL = 6, 40, 10

# The program in the document that needs neither kdflow nor torch.
CLASSIFY = re.search(r"```python\n(.*?)```", (ROOT / "docs/user-images.md").read_text(), re.DOTALL)[1]
CLASSIFY += '\nassert "kdflow" not in sys.modules and "torch" not in sys.modules\n'


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """300 photos of Tiny ImageNet in folders by class, enlarged to different shapes."""
    source = os.environ.get("KDFLOW_TINY_IMAGENET")
    if not source:
        pytest.skip("KDFLOW_TINY_IMAGENET is not set to the folder tiny-imagenet-200/")
    folder = tmp_path_factory.mktemp("photos")
    for class_folder in sorted((Path(source) / "train").iterdir())[:CLASSES]:
        for i, file in enumerate(sorted((class_folder / "images").iterdir())[: TRAIN + VAL]):
            out = folder / "photos" / ("train" if i < TRAIN else "val") / class_folder.name / file.name
            out.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).convert("RGB").resize((80 + i, 72), Image.Resampling.BICUBIC).save(out, quality=95)
    return folder


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_student_of_photos_predicts_the_same_classes_with_and_without_kdflow(photos):
    kdflow = (sys.executable, "-m", "kdflow.cli")
    distill = "distill --data photos --image-size 64 --teacher resnet18 --student mobilenetv2 --out out --device cpu"
    output = run(photos, *kdflow, *distill.split(), "--epochs", "1", "--teacher-epochs", "1", "--root", str(ROOT))
    assert "Not a full run" in output
    export = "export out/students/kd_tlcutmix_pick/seed0.safetensors --format onnx --out student.onnx"
    run(photos, *kdflow, *export.split(), "--root", str(ROOT))
    report = json.loads((photos / "student.onnx.json").read_text())
    assert report["verification"]["images"] == CLASSES * VAL
    images = sorted(str(file.relative_to(photos)) for file in photos.glob("photos/val/*/*"))
    without_kdflow = run(photos, sys.executable, "-c", CLASSIFY, "student.onnx", *images)
    predictions = json.loads(run(photos, *kdflow, "predict", *images, "--model", "student.onnx", "--json"))
    assert len(predictions) == CLASSES * VAL
    expected = [f"{one['image']} {[name for name, _ in one['classes']]}" for one in predictions]
    assert without_kdflow.splitlines() == expected
