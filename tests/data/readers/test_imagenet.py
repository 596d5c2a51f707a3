"""The reader of ImageNet: archives and folder give the same list, pixels and run; wrong sources are one line."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from imagenet_archives import both_forms
from paths import ROOT
from PIL import Image
from small import METHODS, online_source, run_of

from kdflow import config
from kdflow.config import Architecture, BaseView, DatasetSource, Resize
from kdflow.core.errors import UserError
from kdflow.data import load, prepare
from kdflow.data.readers import imagenet
from kdflow.data.readers.imagenet import DEVKIT, TRAIN, VAL
from kdflow.models import create_model
from kdflow.training.loop import fit
from kdflow.training.step import new_student

CPU = torch.device("cpu")
IDS = ("n02", "n01", "n03")  # the devkit's numbers are in another order
SPEC = DatasetSource(reader="imagenet", classes=3, image_size=32, train_images=9, test_images=6)


def _jpeg(seed):
    random = np.random.RandomState(seed)
    content = io.BytesIO()
    shape = (*random.randint(40, 60, 2), 3)
    Image.fromarray(random.randint(0, 256, shape).astype(np.uint8)).convert("CMYK" if seed % 4 == 1 else "RGB").save(
        content, "JPEG"
    )
    return content.getvalue()


@pytest.fixture
def forms(tmp_path):
    """A folder, and the same images as archives."""
    photos = {name: [_jpeg(10 * place + i) for i in range(5)] for place, name in enumerate(IDS)}
    truth = [(2, 4), (1, 3), (3, 4), (1, 4), (3, 3), (2, 3)]
    return tmp_path / "tree", both_forms(photos, tmp_path / "tree", truth, IDS)


def assert_same(first, second):
    """Check that two prepared datasets are equal, to the last pixel."""
    views = BaseView(crop=0, flip=True, resize=Resize(side=36, area=(0.1, 1)), mean=(0.5,) * 3, std=(0.25,) * 3)
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert a.files.paths.tolist() == b.files.paths.tolist()
        assert torch.equal(a.labels, b.labels)
        requests = [[[index, 7 * index] for index in range(len(a))]]
        for x, y in zip(a.for_training(requests, views), b.for_training(requests, views), strict=True):
            assert torch.equal(x, y)
    assert first.sha256 == second.sha256
    assert first.class_names == second.class_names


def test_archives_and_folder_give_the_same_list_and_pixels(forms, tmp_path):
    tree, archives = forms
    spec = archives.write(tmp_path / "tars", SPEC)
    before = sorted(tmp_path.rglob("*"))
    digests = [
        prepare("i", spec, where, tmp_path, tmp_path / f"{where.name}.h5") for where in (tree, tmp_path / "tars")
    ]
    assert digests[0] == digests[1]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "tree.h5", tmp_path / "tars.h5"]), "unpacked"
    for workers in (0, 2):
        assert_same(*(load(tmp_path / f"{form}.h5", 9, CPU, workers) for form in ("tree", "tars")))
    assert_same(*(load(tmp_path / f"{form}.h5", 4, CPU) for form in ("tree", "tars")))
    assert load(tmp_path / "tars.h5", 9, CPU).class_names == ["n01", "n02", "n03"]


def refused(spec, folder):
    out = folder.parent / "out.h5"
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        prepare("i", spec, folder, folder, out)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


HOSTILE = {
    "../n01_9.JPEG": "is outside of",
    "/tmp/n01_9.JPEG": "is outside of",
    "a\\..\\n01_9.JPEG": "is outside of",
    entry("n01_9.JPEG", tarfile.SYMTYPE, "/etc/passwd"): "is a link",
    entry("n01_9.JPEG", tarfile.LNKTYPE, "n01_0.JPEG"): "is a link",
    entry("n01_9.JPEG", tarfile.CHRTYPE): "is a link, or not a file",
    entry("n01_9.JPEG", tarfile.FIFOTYPE): "is a link, or not a file",
    "n01_0.JPEG": "is a duplicate",
    "n02_0.JPEG": "expected n01_<number>.JPEG",
    "n01_9.exe": "expected n01_<number>.JPEG",
    "sub/n01_9.JPEG": "expected n01_<number>.JPEG",
}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: getattr(name, "name", name) + str(getattr(name, "type", "")))
@pytest.mark.parametrize("part", ["train", "val"])
def test_hostile_members_are_refused_and_nothing_is_written(forms, tmp_path, part, name):
    _, archives = forms
    if part == "train":
        archives.train["n01.tar"].append((name, b"x"))
        expected = HOSTILE[name]
    else:
        twice = HOSTILE[name] == "is a duplicate"
        archives.val.append((archives.val[0][0] if twice else name, b"x"))
        expected = HOSTILE[name] if "expected" not in HOSTILE[name] else "the members must be the 6 images"
    spec = archives.write(tmp_path / "tars", SPEC)
    assert expected in refused(spec, tmp_path / "tars")


def _header(archive, member, old, new):
    """Change a field of a member's header, and its checksum."""
    content = bytearray(archive.read_bytes())
    at = content.index(member.encode() + b"\0")
    header = content[at : at + 512]
    place = header.index(old)
    header[place : place + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[at : at + 512] = header
    archive.write_bytes(content)


@pytest.mark.parametrize(("size", "expected"), [(2**40, "has 1,099,511,627,776 bytes"), (2**25, "cut short")])
@pytest.mark.parametrize("archive", [TRAIN, VAL])
def test_a_huge_size_is_refused(forms, tmp_path, archive, size, expected):
    _, archives = forms
    spec = archives.write(tmp_path / "tars", SPEC)
    member = "n01_0.JPEG" if archive == TRAIN else "ILSVRC2012_val_00000001.JPEG"
    content = dict(archives.train["n01.tar"] + archives.val)[member]
    number = b"%011o" % size if size < 2**33 else b"\x80" + size.to_bytes(11, "big")
    _header(tmp_path / "tars" / archive, member, b"%011o" % len(content), number)
    assert expected in refused(spec, tmp_path / "tars")


def test_a_header_of_a_huge_size_is_refused(forms, tmp_path):
    _, archives = forms
    spec = archives.write(tmp_path / "tars", SPEC)
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = entry("n", kind)
        info.size = 2**32
        (tmp_path / "tars" / VAL).write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**12))
        assert "a header of 4,294,967,296 bytes" in refused(spec, tmp_path / "tars")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("archive", [TRAIN, VAL, DEVKIT])
def test_an_archive_cut_short_is_refused(forms, tmp_path, archive, share):
    _, archives = forms
    spec = archives.write(tmp_path / "tars", SPEC)
    file = tmp_path / "tars" / archive
    content = file.read_bytes().rstrip(b"\0")  # a tar ends with zeros
    file.write_bytes(content[: int(share * len(content))])
    assert archive in refused(spec, tmp_path / "tars")
    if archive == DEVKIT:
        spec = spec.model_copy(update={"md5": hashlib.md5(file.read_bytes()).hexdigest()})
        assert archive in refused(spec, tmp_path / "tars")


def _without_a_class(archives):
    del archives.train["n02.tar"]


def _another_class(archives):
    archives.train["n77.tar"] = [("n77_0.JPEG", b"x")]


def _empty_class(archives):
    archives.train["n02.tar"] = []


def _a_validation_image_less(archives):
    del archives.val[2]


def _without_meta(archives):
    del archives.devkit["data/meta.mat"]


def _damaged_meta(archives):
    archives.devkit["data/meta.mat"] = archives.devkit["data/meta.mat"][:200]


def _unknown_number(archives):
    archives.devkit[imagenet.TRUTH] = b"1\n2\n3\n1\n2\n8\n"


def _words_as_numbers(archives):
    archives.devkit[imagenet.TRUTH] = b"tench\n"


def _hostile_devkit(archives):
    archives.devkit["../../evil"] = b"x"


WRONG = {
    _without_a_class: "n02.tar: the members must be one tar for each class",
    _another_class: "n77.tar: the members must be one tar for each class",
    _empty_class: "n02.tar: has no images",
    _a_validation_image_less: "the members must be the 6 images",
    _without_meta: "meta.mat",
    _damaged_meta: "meta.mat",
    _unknown_number: "8 is not a class of",
    _words_as_numbers: "damaged",
    _hostile_devkit: "is outside of ILSVRC2012_devkit_t12/",
}


@pytest.mark.parametrize("damage", WRONG, ids=lambda damage: damage.__name__.strip("_"))
def test_archives_that_are_not_imagenet_are_refused(forms, tmp_path, damage):
    _, archives = forms
    damage(archives)
    assert WRONG[damage] in refused(archives.write(tmp_path / "tars", SPEC), tmp_path / "tars")


def test_a_missing_archive_is_named(forms, tmp_path):
    _, archives = forms
    spec = archives.write(tmp_path / "tars", SPEC)
    assert "md5 is" in refused(SPEC.model_copy(update={"md5": "0" * 32}), tmp_path / "tars")
    for name in (DEVKIT, VAL, TRAIN):
        (tmp_path / "tars" / name).unlink()
        assert name in refused(spec, tmp_path / "tars")
    with pytest.raises(UserError, match="cannot be downloaded"):
        imagenet.read(spec, None, tmp_path)


def test_a_missing_or_shorter_archive_is_refused(forms, tmp_path):
    _, archives = forms
    spec = archives.write(tmp_path / "tars", SPEC)
    prepare("i", spec, tmp_path / "tars", tmp_path, tmp_path / "i.h5")
    file = tmp_path / "tars" / TRAIN
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"has 20000 bytes, at least \d+ when it was listed; `dvc repro"):
        load(tmp_path / "i.h5", 9, CPU)
    file.unlink()
    with pytest.raises(UserError, match="No such file or directory, but its images were listed"):
        load(tmp_path / "i.h5", 9, CPU)


def _first_photos(classes, images):
    """Real photos of Tiny ImageNet by their classes."""
    given = os.environ.get("KDFLOW_TINY_IMAGENET")
    if not given:
        pytest.skip("KDFLOW_TINY_IMAGENET names no tiny-imagenet-200/")
    found = sorted((Path(given) / "train").iterdir())[:classes]
    return {
        within.name: [file.read_bytes() for file in sorted((within / "images").iterdir())[:images]] for within in found
    }


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "images"), [(2, 6), pytest.param(20, 2, marks=pytest.mark.long)])
def test_real_photos_at_224_pixels_from_both_forms(tmp_path, classes, images):
    """A run with untrained ResNets has the same curve from archives and folder."""
    photos = _first_photos(classes, images)
    ids = tuple(reversed(photos))
    archives = both_forms(photos, tmp_path / "tree", [(number, 0) for number in range(1, classes + 1)], ids)
    counts = {"classes": classes, "image_size": 224, "train_images": classes * (images - 1)}
    spec = archives.write(tmp_path / "tars", SPEC.model_copy(update={**counts, "test_images": classes}))
    recipes = config.load_recipes(ROOT)
    student, teacher = (Architecture(name=name, model=recipes.models[name]) for name in ("resnet18", "resnet34"))
    run = run_of(METHODS["kd_tlcutmix_pick"], batch_size=10, epochs=1, eval_every=1).model_copy(
        update={
            "dataset": "imagenet",
            "architecture": student.name,
            "model": student.model,
            "teacher": teacher,
            "base_view": recipes.datasets["imagenet"].base_view,
            **counts,
        }
    )
    curves = []
    for form in ("tree", "tars"):
        prepare("i", spec, tmp_path / form, tmp_path, tmp_path / f"{form}.h5")
        data = load(tmp_path / f"{form}.h5", counts["train_images"], CPU, 2)
        torch.manual_seed(1)
        source = create_model("resnet34", teacher.model, classes, 224).eval().requires_grad_(False)
        learner = new_student(run, data.train.labels)
        progress = fit("run", run, data, learner, online_source(run, source), tmp_path / form / "c", "k" * 64, print)
        curves.append(progress.curve)
    assert curves[0] == curves[1]
    assert [point.epoch for point in curves[0]] == [1]
    assert curves[0][0].top1 is not None
