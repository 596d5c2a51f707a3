"""Where a student is found, and what lies beside it."""

import shutil
from pathlib import Path

import pytest
from factories import ROOT
from shipped import make

from kdflow import record, trained
from kdflow.errors import UserError
from kdflow.record import RunLog

PAPER = Path("paper")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    make(folder, "digits")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copytree(ROOT / "paper/miniature", folder / "paper/miniature")
    return folder


@pytest.fixture
def root(source, tmp_path):
    """A project with a student of kd, to be changed."""
    return Path(shutil.copytree(source, tmp_path / "root"))


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_method_a_cell_and_a_file(root):
    students = root / "data/students/kd"
    for kind in (".safetensors", ".json"):
        shutil.copy(students / f"seed0{kind}", students / f"seed12{kind}")
    assert trained.find("kd", None, PAPER, root) == students / "seed0.safetensors"
    assert trained.find("kd", 12, PAPER, root) == students / "seed12.safetensors"
    assert trained.find("some/where.safetensors", None, PAPER, root) == Path("some/where.safetensors")
    cell = root / "data/miniature/cells/digits-resnet20-resnet8-kd/students"
    shutil.copytree(students, cell)
    found = trained.find("digits-resnet20-resnet8-kd", 12, Path("paper/miniature"), root)
    assert found == cell / "seed12.safetensors"


def test_what_is_none_of_them(root):
    assert "neither a student's weights" in refused(lambda: trained.find("kdd", None, PAPER, root))
    assert "`dvc repro distill@ce` makes it" in refused(lambda: trained.find("ce", None, PAPER, root))
    assert refused(lambda: trained.find("kd", 3, PAPER, root)).endswith("has no seed 3; it has 0")
    assert "is a file, so of one seed" in refused(lambda: trained.find("a.safetensors", 0, PAPER, root))


def test_what_lies_above(root):
    weights = root / "data/students/kd/seed0.safetensors"
    found = trained.look(weights, None, None)
    assert (found.dataset, found.teacher) == (root / "data/digits.h5", root / "data/teacher/model.safetensors")
    # A paper's teachers are elsewhere.
    moved = root / "data/teachers/digits-larger/model.safetensors"
    moved.parent.mkdir(parents=True)
    found.teacher.rename(moved)
    assert trained.look(weights, None, None).teacher == moved
    shutil.copy(weights, moved)  # the weights of something else
    assert trained.look(weights, None, None).teacher is None
    assert "not the teacher's weights" in refused(lambda: trained.look(weights, None, moved))


def test_what_is_missing(root):
    weights = root / "data/students/kd/seed0.safetensors"
    (root / "data/digits.h5").unlink()
    assert "its dataset, digits.h5 or dataset.h5, is not above; --data names it" in refused(
        lambda: trained.look(weights, None, None)
    )
    weights.with_suffix(".json").unlink()
    assert "its log seed0.json is not beside it" in refused(lambda: trained.look(weights, None, None))
    assert refused(lambda: trained.look(root / "x.safetensors", None, None)).endswith("no such file")


def test_a_student_without_teacher_has_none(root):
    weights = root / "data/students/kd/seed0.safetensors"
    log = record.read(weights.with_suffix(".json"), RunLog)
    run = log.settings.model_copy(update={"teacher": None})
    record.write(weights.with_suffix(".json"), log.model_copy(update={"settings": run}))
    assert trained.look(weights, None, root / "data/teacher/model.safetensors").teacher is None
