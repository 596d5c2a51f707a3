"""Folders of images with train/, val/ and test/ together, or with train/ alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import make_teacher
from paths import ROOT
from PIL import Image
from pydantic import ValidationError

from kdflow import config
from kdflow.cli import students
from kdflow.config import UserFolder
from kdflow.core.errors import UserError
from kdflow.data import load, user_folder
from kdflow.models import create_model, save_weights
from kdflow.pipeline.evaluate import measure_final_test
from kdflow.report import gain
from kdflow.training import record
from kdflow.training.record import mean_std

RECIPE = config.load_recipes(ROOT).user_folder
CPU = torch.device("cpu")
COUNTS = {"train": 5, "val": 3, "test": 2}


def _fill(folder, parts=COUNTS):
    random = np.random.RandomState(0)
    for part in parts:
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for i in range(COUNTS[part.lower()]):
                pixels = random.randint(0, 256, (40, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def _prepare(folder, tmp_path, test_part=None, final_test=None):
    source = UserFolder(folder=str(folder), image_size=32, test_part=test_part)
    return user_folder.prepare(source, RECIPE, tmp_path / "a.h5", final_test=final_test)


def _tested(file):
    """Return the parts of the test images of a dataset file."""
    return {path.split(b"/")[0].decode() for path in load(file, 10, CPU).test.files.paths.tolist()}


@pytest.mark.parametrize("test_part", [None, "val", "test"])
def test_with_val_and_test_the_settings_choose_the_test_set_and_the_other_is_not_read(tmp_path, test_part, capsys):
    photos = _fill(tmp_path / "photos")
    used, unused = ("test", "val") if test_part == "test" else ("val", "test")
    (photos / unused / "dogs/broken.png").write_bytes(b"not an image")
    prepared = _prepare(photos, tmp_path, test_part)
    assert (prepared.data.train_images, prepared.data.test_images) == (10, 2 * COUNTS[used])
    assert _tested(tmp_path / "a.h5") == {used}
    assert prepared.notes == (f"{used}/ is the test set, {unused}/ is not read (test_part chooses one of them)",)
    assert prepared.notes[0] in capsys.readouterr().out


def test_a_second_file_for_the_end_has_the_images_of_test(tmp_path):
    photos, final_test = _fill(tmp_path / "photos"), tmp_path / "final_test.h5"
    without = _prepare(photos, tmp_path)
    prepared = _prepare(photos, tmp_path, final_test=final_test)
    assert (_tested(tmp_path / "a.h5"), _tested(final_test)) == ({"val"}, {"test"})
    assert prepared.notes == ("val/ is the test set, test/ is measured once at the end",)
    assert prepared.model_copy(update={"notes": ()}) == without.model_copy(update={"notes": ()})
    _prepare(photos, tmp_path, "val", final_test)
    assert not final_test.exists(), "the file of an earlier call does not stay"


def test_test_images_of_the_end_are_checked_before_training(tmp_path):
    photos, final_test = _fill(tmp_path / "photos"), tmp_path / "final_test.h5"
    shutil.copy(photos / "train/dogs/0.png", photos / "test/dogs/copy.png")
    notes = _prepare(photos, tmp_path, final_test=final_test).notes
    assert notes[1].startswith("warning: copies of training images among the test images: 1 (test/dogs/copy.png")
    (photos / "test/dogs/broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1 of 22 images cannot be read: test/dogs/broken\.png"):
        _prepare(photos, tmp_path, final_test=final_test)
    (photos / "test/dogs/broken.png").unlink()
    shutil.rmtree(photos / "test/cats")
    for number in (0, 1):
        with pytest.raises(UserError, match=r"photos/test: has . class folders.*--test-part val, does not read it"):
            _prepare(photos, tmp_path, final_test=final_test)
        if number == 0:
            shutil.rmtree(photos / "test/dogs")
    assert _prepare(photos, tmp_path, "val", final_test).data.test_images == 6


@pytest.mark.parametrize("name", ["train", "Train"])
def test_train_alone_is_split_as_a_folder_of_classes(tmp_path, name):
    photos = _fill(tmp_path / "photos", [name])
    prepared = _prepare(photos, tmp_path)
    assert (prepared.class_names, prepared.data.train_images, prepared.data.test_images) == (("cats", "dogs"), 8, 2)
    assert _tested(tmp_path / "a.h5") == {name}


def test_a_class_with_the_name_of_a_part_is_refused(tmp_path):
    photos = _fill(tmp_path / "photos", ["train"])
    (photos / "plane").mkdir()
    with pytest.raises(UserError, match=r"found train/, plane/; rename a class of such a name"):
        _prepare(photos, tmp_path)
    shutil.move(photos / "plane", photos / "val")
    (photos / "valid").mkdir()
    with pytest.raises(UserError, match=r"found train/, val/, valid/; rename a class of such a name"):
        _prepare(photos, tmp_path)


@pytest.mark.parametrize(
    ("parts", "test_part", "missing"),
    [(["train", "val"], "test", "test"), (["train", "test"], "val", "val"), (["train"], "val", "val")],
)
def test_a_part_that_does_not_exist_cannot_be_the_test_set(tmp_path, parts, test_part, missing):
    photos = _fill(tmp_path / "photos", parts)
    with pytest.raises(UserError, match=f"photos: has no {missing}/; test_part: {test_part}"):
        _prepare(photos, tmp_path, test_part)
    with pytest.raises(UserError, match="photos/train: has no train/; test_part: val"):
        _prepare(photos / "train", tmp_path, "val")


def test_the_part_is_a_setting_that_older_descriptions_do_not_have():
    source = UserFolder(folder="photos", image_size=32)
    assert "test_part" not in source.model_dump()
    assert source.model_copy(update={"test_part": "test"}).model_dump()["test_part"] == "test"
    with pytest.raises(ValidationError, match="'val' or 'test'"):
        UserFolder(folder="photos", image_size=32, test_part="train")


def test_the_final_test_measures_each_file_of_weights_on_test(tmp_path):
    photos, final_test = _fill(tmp_path / "photos"), tmp_path / "final_test.h5"
    prepared = _prepare(photos, tmp_path, final_test=final_test)
    experiment = config.load(ROOT)
    params = experiment.params.model_copy(update={"dataset": prepared.source})
    update = {"params": params, "prepared": prepared, "datasets": {prepared.name: prepared.dataset}}
    experiment = experiment.model_copy(update=update)
    run, models = experiment.teacher_run(), []
    for answer in (0, 1):
        model = create_model(run.architecture, run.model, run.classes, run.image_size)
        last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        torch.nn.init.zeros_(last.weight)
        last.bias.data = torch.eye(2)[answer]
        save_weights(model, tmp_path / f"{answer}.safetensors")
        models.append((run, tmp_path / f"{answer}.safetensors"))
    shutil.copy(photos / "val/dogs/0.png", photos / "test/dogs/more.png")
    _prepare(photos, tmp_path, final_test=final_test)
    top1, images = measure_final_test(experiment, final_test, models)
    assert [top1[str(weights)] for _, weights in models] == pytest.approx([40.0, 60.0])
    assert images == 5


def test_the_summary_has_a_column_of_test_only_if_it_was_measured(tmp_path, capsys):
    teacher = gain.teacher_row("resnet14", make_teacher(), (100, 400), "teacher/a")
    student = teacher.model_copy(update={"role": "student, kd", "top1": mean_std([90.0]), "weights": ("s0", "s1")})
    numbers = {"classes": 2, "image_size": 32, "train_images": 10, "test_images": 6, "epochs": 1}
    notes = {"budget_note": "", "teacher_source": "trained", "teacher_trained": True, "majority_accuracy": 50.0}
    before = gain.Summary(dataset="photos", **numbers, **notes, models=(teacher, student), gain=None)
    assert "test/" not in " ".join(gain.columns(before)) + before.final_test
    assert "final_test" not in before.model_dump_json()
    after = before.with_final_test({"teacher/a": 75.0, "s0": 50.0, "s1": 60.0}, 4)
    assert [row[3] for row in gain.rows(after)] == [str(mean_std([75.0])), str(mean_std([50.0, 60.0]))]
    assert {len(row) for row in gain.rows(after)} == {len(gain.columns(after))}
    assert gain.Summary.model_validate_json(after.model_dump_json()) == after
    students._print_summary(after, tmp_path)
    output = capsys.readouterr().out
    assert "test/ top-1 %" in output
    assert "test/: 4 images, measured once at the end; everything else is from val/." in output


@pytest.mark.slow
def test_one_command_measures_teacher_and_student_on_test_at_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _fill(tmp_path / "photos")
    given = {"data": Path("photos"), "teacher": ["resnet14"], "student": "resnet8", "method": "kd", "image_size": 32}
    students.distill(**given, epochs=1, root=ROOT, device="cpu", workers=0)
    output = capsys.readouterr().out
    assert "10 training and 6 test images" in output
    assert "test/: 4 images, measured once at the end" in output
    summary = record.read_record(tmp_path / "out/summary.json", gain.Summary)
    assert [row.final_test_top1.n for row in summary.models] == [1, 1]
    assert summary.final_test_images == 4
