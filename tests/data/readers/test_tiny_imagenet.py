"""The reader of Tiny ImageNet: the right pixels from zip and folder, and one line for each wrong source."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from kdflow.config import DatasetSource
from kdflow.core.errors import UserError
from kdflow.data import prepare
from kdflow.data.readers import tiny_imagenet

FOLDER = "tiny-imagenet-200"
IDS = ("n03", "n01", "n02")
SPEC = DatasetSource(reader="tiny_imagenet", classes=3, image_size=64, train_images=9, test_images=3, md5="0" * 32)


def _jpeg(seed, mode="RGB", size=(64, 64)):
    noise = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def members():
    """The official layout, three classes, some images grey."""
    files = {"wnids.txt": "\n".join(IDS).encode(), "words.txt": b"n01\tgoldfish\nn02\ttoad, frog\nn09\tunused\n"}
    for label, name in enumerate(IDS):
        for i in range(3):
            files[f"train/{name}/images/{name}_{i}.JPEG"] = _jpeg(10 * label + i, "L" if i == 1 else "RGB")
        files[f"val/images/val_{label}.JPEG"] = _jpeg(100 + label)
    annotations = [f"val_{label}.JPEG\t{name}\t0\t0\t1\t1" for label, name in enumerate(IDS)]
    files["val/val_annotations.txt"] = "\n".join(annotations).encode()
    return files


def _folder(members, where):
    for name, content in members.items():
        (where / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (where / FOLDER / name).write_bytes(content)
    return where


def _zipped(where, entries):
    """Write an archive of (name or ZipInfo, content) and return the spec with its md5."""
    where.mkdir(exist_ok=True)
    with zipfile.ZipFile(where / f"{FOLDER}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    md5 = hashlib.md5((where / f"{FOLDER}.zip").read_bytes()).hexdigest()
    return SPEC.model_copy(update={"md5": md5})


def _refused(spec, folder):
    with pytest.raises(UserError) as caught:
        prepare("t", spec, folder, folder, folder / "t.h5")
    assert "\n" not in str(caught.value)
    assert not (folder / "t.h5").exists()
    return str(caught.value)


def test_pixels_and_labels_are_those_of_the_files(members, tmp_path):
    splits = tiny_imagenet.read(SPEC, _folder(members, tmp_path), tmp_path)
    assert splits.class_names == ["n01 goldfish", "n02 toad, frog", "n03"]
    names = sorted(name for name in members if name.startswith("train/"))
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert splits.test.labels.tolist() == [sorted(IDS).index(name) for name in IDS], "as val_annotations.txt says"
    for name, image in zip(names, splits.train.images, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(members[name])).convert("RGB")))


def test_zip_and_folder_give_the_same(members, tmp_path):
    spec = _zipped(tmp_path / "zip", [(f"{FOLDER}/{name}", content) for name, content in members.items()])
    (tmp_path / "tree").mkdir()
    first = prepare("t", spec, tmp_path / "zip", tmp_path, tmp_path / "a.h5")
    assert first == prepare("t", SPEC, _folder(members, tmp_path / "tree"), tmp_path, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert sorted(file.name for file in (tmp_path / "zip").iterdir()) == [f"{FOLDER}.zip"], "nothing is unpacked"


LINK = zipfile.ZipInfo(f"{FOLDER}/train/link")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16
HOSTILE = {
    "../evil": "is outside of",
    f"{FOLDER}/../../evil": "is outside of",
    "/tmp/evil": "is outside of",
    f"{FOLDER}\\..\\evil": "is outside of",
    LINK: "is a link",
    f"{FOLDER}/wnids.txt": "is a duplicate",
    f"{FOLDER}/huge": "has 20,971,520 bytes",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE, ids=str)
def test_hostile_members_are_refused_and_nothing_is_written(members, tmp_path, name):
    where = tmp_path / "within"
    content = b"\0" * (20 * 2**20) if str(name).endswith("huge") else b"x"
    entries = [(f"{FOLDER}/{key}", value) for key, value in members.items()]
    spec = _zipped(where, [*entries, (name, content)])
    before = sorted(tmp_path.rglob("*"))
    assert HOSTILE[name] in _refused(spec, where)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_checksum_is_refused(members, tmp_path):
    _zipped(tmp_path, [(f"{FOLDER}/{name}", content) for name, content in members.items()])
    assert "expected 0000" in _refused(SPEC, tmp_path)


WRONG = {
    "val/val_annotations.txt": (b"val_0.JPEG\tn77\n", "class 'n77' is not in wnids.txt"),
    "val/images/val_1.JPEG": (None, "missing, but it has a label"),
    "wnids.txt": (None, "wnids.txt: missing"),
    "train/n01/images/n01_0.JPEG": (_jpeg(0)[:900], "cannot be read as an image"),
    "train/n01/images/n01_1.JPEG": (_jpeg(0, size=(32, 64)), "32 x 64 pixels, 64 x 64 expected"),
    "train/n01/images/n01_2.JPEG": (_jpeg(0, size=(640, 640)), "at most 4,096 are allowed"),
    "train/n02/images/more.JPEG": (_jpeg(0), "10 training images, 9 expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_content_is_refused_in_one_line(members, tmp_path, name):
    content, expected = WRONG[name]
    members[name] = content
    folder = _folder({key: value for key, value in members.items() if value is not None}, tmp_path)
    assert expected in _refused(SPEC, folder)


def test_fewer_training_images_are_accepted_if_the_settings_use_no_more(members, tmp_path):
    del members["train/n01/images/n01_0.JPEG"]
    folder = _folder(members, tmp_path)
    assert "train_images: 8 would use these" in _refused(SPEC, folder)
    prepare("t", SPEC, folder, tmp_path, tmp_path / "t.h5", min_train_images=8)
    with pytest.raises(UserError):
        prepare("t", SPEC, folder, tmp_path, tmp_path / "t.h5", min_train_images=9)


PREPARE = """
import re, sys
from pathlib import Path
from kdflow import config
from kdflow.data import prepare

spec = config.load_recipes(Path(sys.argv[1])).datasets["tiny_imagenet"].data
prepare("tiny_imagenet", spec, Path(sys.argv[2]), Path("."), Path("t.h5"), min_train_images=40_000)
# Not getrusage: its peak begins with that of the process that started this one.
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.mark.slow
def test_the_real_images(tmp_path):
    """40,000 training images and all validation images: counts, hash, and memory below 2 GiB for all images."""
    given = os.environ.get("KDFLOW_TINY_IMAGENET")
    if not given:
        pytest.skip("KDFLOW_TINY_IMAGENET names no tiny-imagenet-200/ with 200 training images a class")
    command = [sys.executable, "-c", PREPARE, str(ROOT), given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    with h5py.File(tmp_path / "t.h5") as file:
        shapes = {part: file[f"{part}/images"].shape for part in ("train", "test")}
        assert shapes == {"train": (40_000, 64, 64, 3), "test": (10_000, 64, 64, 3)}
        assert set(np.bincount(file["train/labels"])) == {200}
        assert set(np.bincount(file["test/labels"])) == {50}
        assert file.attrs["sha256"] == REAL
    assert int(done.stdout.split()[-1]) + 60_000 * 64 * 64 * 3 < 2 * 2**30


REAL = "48a59cfa71d4109d984378244d9ba3d5ef4a059d960c03b2e905e95a9f4e08fd"
