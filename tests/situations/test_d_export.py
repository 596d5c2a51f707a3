"""Export of a student whose photos have moved, and of a teacher that kdflow has trained."""

import shutil
from pathlib import Path

import pytest
from factories import make_teacher
from paths import ROOT
from shipped import make
from typer.testing import CliRunner

from kdflow.cli import app
from kdflow.core.errors import UserError
from kdflow.export import export, locate
from kdflow.export.formats import read_card
from kdflow.training import record
from kdflow.training.record import RunLog

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    weights = make(folder)
    log = record.read_record(weights.with_suffix(".json"), RunLog)
    record.write_record(weights.with_suffix(".json"), log.model_copy(update={"class_names": ("cat", "dog")}))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


@pytest.fixture
def root(source, tmp_path, monkeypatch):
    """The project after training, which a test may change; its photos stay in `source`."""
    folder = Path(shutil.copytree(source, tmp_path / "root", ignore=shutil.ignore_patterns("images")))
    monkeypatch.chdir(folder)
    return folder


def kdflow(*arguments):
    return CliRunner().invoke(app, ["export", *arguments, "--format", "safetensors", "--out", "out.safetensors"])


def test_photos_that_have_moved_are_named_with_the_option_that_goes_without_them(source, root):
    weights = root / "data/students/kd/seed0.safetensors"
    student = locate.locate_inputs(weights, None, None)
    photos = (source / "images").rename(source / "moved")
    try:
        with pytest.raises(UserError, match=r"images/.*: No such file .*; or export with --no-verify"):
            export.export(student, "safetensors", Path("out.safetensors"), 1)
    finally:
        photos.rename(source / "images")
    assert not Path("out.safetensors").exists()
    (root / "data/tree.h5").unlink()
    with pytest.raises(UserError, match="give the file by --data, or export with --no-verify"):
        locate.locate_inputs(weights, None, None)


def test_no_verify_needs_neither_photos_nor_dataset(root):
    (root / "data/tree.h5").unlink()
    done = kdflow("kd", "--no-verify")
    assert done.exit_code == 0, done.exception
    assert "not verified on test images (--no-verify)" in done.stdout
    assert read_card(Path("out.safetensors")).class_names == ("cat", "dog")
    report = record.read_record(Path("out.safetensors.json"), export.ExportReport)
    assert report.verification is None
    assert report.teacher is not None


def test_no_verify_needs_the_names_of_the_classes_in_the_log(root):
    weights = root / "data/students/kd/seed0.safetensors"
    log = record.read_record(weights.with_suffix(".json"), RunLog)
    record.write_record(weights.with_suffix(".json"), log.model_copy(update={"class_names": ()}))
    assert "has no names of classes" in str(kdflow("kd", "--no-verify").exception)
    assert "leave out --data" in str(kdflow("kd", "--no-verify", "--data", "data/tree.h5").exception)


def test_the_teacher_of_the_experiment_and_a_file_of_a_teacher_are_exported(root):
    folder = root / "data/teacher"
    assert "`dvc repro teacher` trains it" in str(kdflow("teacher", "--root", "elsewhere").exception)
    log = record.read_record(root / "data/students/kd/seed0.json", RunLog)
    run = log.settings.model_copy(
        update={"architecture": log.settings.teacher.name, "model": log.settings.teacher.model, "teacher": None}
    )
    made = log.model_copy(update={"settings": run, "weights_sha256": log.teacher_sha256, "teacher_sha256": None})
    record.write_record(folder / "training.json", made)
    for name in ("teacher", "data/teacher/model.safetensors"):
        done = kdflow(name, "--no-verify")
        assert done.exit_code == 0, done.exception
        assert "teacher larger" in done.stdout and "student" not in done.stdout
        assert read_card(Path("out.safetensors")).settings.architecture == "larger"
    assert "a teacher has no seed" in str(kdflow("teacher", "--seed", "0").exception)
    student = locate.locate_inputs(folder / "model.safetensors", None, None, needs_dataset=False)
    file, _ = export.export(student, "safetensors", None, 1)
    assert str(file) == "tree-larger-teacher-seed0.safetensors"
    (folder / "training.json").unlink()
    record.write_record(folder / "record.json", make_teacher())
    assert "only models that kdflow has trained can be exported" in str(kdflow("teacher").exception)


def test_a_teacher_of_the_paper_is_found_by_its_name(root):
    shutil.copytree(ROOT / "paper/miniature", root / "paper/miniature")
    paper = Path("paper/miniature")
    weights = root / paper / "data/teachers/digits-resnet20/model.safetensors"
    with pytest.raises(UserError, match=r"`dvc --cd paper/miniature repro teacher@digits-resnet20` trains it"):
        locate.find_weights("digits-resnet20", None, paper, root)
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    assert locate.find_weights("digits-resnet20", None, paper, root) == weights
