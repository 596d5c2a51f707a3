"""From photos to a file that runs elsewhere: the commands of docs/own-model.md, on real photos, to the same top-5."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from PIL import Image

CLASSES, TRAIN, VAL = 6, 40, 10

# What stands in for a program without kdflow: Pillow, numpy and onnxruntime alone.
ELSEWHERE = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
card = json.loads(session.get_modelmeta().custom_metadata_map["kdflow"])
side, size = card["preprocessing"]["shorter_side"], card["preprocessing"]["size"]
for name in sys.argv[2:]:
    image = Image.open(name).convert("RGB")
    shorter = min(image.size)
    image = image.resize([length * side // shorter for length in image.size], Image.Resampling.BILINEAR)
    left, top = (round((length - size) / 2) for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)[None]
    (logits,) = session.run(["logits"], {"images": pixels})
    print(json.dumps([card["class_names"][i] for i in logits[0].argsort()[::-1][:5]]))
assert "kdflow" not in sys.modules and "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """300 photos of Tiny ImageNet in folders by class, enlarged to shapes of their own."""
    given = os.environ.get("KDFLOW_TINY_IMAGENET")
    if not given:
        pytest.skip("KDFLOW_TINY_IMAGENET names no tiny-imagenet-200/")
    folder = tmp_path_factory.mktemp("photos")
    for within in sorted((Path(given) / "train").iterdir())[:CLASSES]:
        for i, file in enumerate(sorted((within / "images").iterdir())[: TRAIN + VAL]):
            out = folder / "photos" / ("train" if i < TRAIN else "val") / within.name / file.name
            out.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).convert("RGB").resize((80 + i, 72), Image.Resampling.BICUBIC).save(out, quality=95)
    return folder


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_photos_become_a_student_that_says_the_same_elsewhere(photos):
    kdflow = (sys.executable, "-m", "kdflow.cli")
    distill = "distill --data photos --image-size 64 --teacher resnet18 --student mobilenetv2 --out out --device cpu"
    said = run(photos, *kdflow, *distill.split(), "--epochs", "1", "--teacher-epochs", "1", "--root", str(ROOT))
    assert "Not a full run" in said
    export = "export out/students/kd_tlcutmix_pick/seed0.safetensors --format onnx --out student.onnx"
    run(photos, *kdflow, *export.split(), "--root", str(ROOT))
    report = json.loads((photos / "student.onnx.json").read_text())
    assert report["verified"]["images"] == CLASSES * VAL
    images = sorted(str(file) for file in photos.glob("photos/val/*/*"))
    elsewhere = run(photos, sys.executable, "-c", ELSEWHERE, "student.onnx", *images).splitlines()
    here = json.loads(run(photos, *kdflow, "predict", *images, "--model", "student.onnx", "--json"))
    assert len(here) == CLASSES * VAL
    assert list(map(json.loads, elsewhere)) == [[name for name, _ in of_image["classes"]] for of_image in here]
