"""Location of a student's weights, log, dataset and teacher."""

import shutil
from pathlib import Path

import pytest
from paths import ROOT
from shipped import make

from kdflow.core.errors import UserError
from kdflow.export import locate
from kdflow.training import record
from kdflow.training.record import RunLog

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
    """A project with a student of kd, which a test may change."""
    return Path(shutil.copytree(source, tmp_path / "root"))


def refused(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_found_by_method_cell_and_file(root):
    students = root / "data/students/kd"
    for kind in (".safetensors", ".json"):
        shutil.copy(students / f"seed0{kind}", students / f"seed12{kind}")
    assert locate.find_weights("kd", None, PAPER, root) == students / "seed0.safetensors"
    assert locate.find_weights("kd", 12, PAPER, root) == students / "seed12.safetensors"
    assert locate.find_weights("some/where.safetensors", None, PAPER, root) == Path("some/where.safetensors")
    cell = root / "paper/miniature/data/cells/digits-resnet20-resnet8-kd/students"
    shutil.copytree(students, cell)
    found = locate.find_weights("digits-resnet20-resnet8-kd", 12, Path("paper/miniature"), root)
    assert found == cell / "seed12.safetensors"


def test_an_unknown_name_or_seed_is_refused(root):
    assert "neither a file of weights" in refused(lambda: locate.find_weights("kdd", None, PAPER, root))
    assert "`dvc repro distill@ce` trains it" in refused(lambda: locate.find_weights("ce", None, PAPER, root))
    assert refused(lambda: locate.find_weights("kd", 3, PAPER, root)).endswith("has no seed 3; it has 0")
    assert "is a file; --seed is for a cell or a method" in refused(
        lambda: locate.find_weights("a.safetensors", 0, PAPER, root)
    )


def test_dataset_and_teacher_are_found_in_the_folders_above(root):
    weights = root / "data/students/kd/seed0.safetensors"
    found = locate.locate_inputs(weights, None, None)
    assert (found.dataset, found.teacher) == (root / "data/digits.h5", root / "data/teacher/model.safetensors")
    # The paper's teachers have another folder.
    moved = root / "data/teachers/digits-larger/model.safetensors"
    moved.parent.mkdir(parents=True)
    found.teacher.rename(moved)
    assert locate.locate_inputs(weights, None, None).teacher == moved
    shutil.copy(weights, moved)  # another hash
    assert locate.locate_inputs(weights, None, None).teacher is None
    assert "not the student's teacher, whose sha256 is " in refused(lambda: locate.locate_inputs(weights, None, moved))


def test_a_missing_dataset_log_or_file_is_an_error(root):
    weights = root / "data/students/kd/seed0.safetensors"
    (root / "data/digits.h5").unlink()
    assert "its dataset, digits.h5 or dataset.h5, is in no folder above; give the file by --data" in refused(
        lambda: locate.locate_inputs(weights, None, None)
    )
    weights.with_suffix(".json").unlink()
    assert "its training log seed0.json is missing in the same folder" in refused(
        lambda: locate.locate_inputs(weights, None, None)
    )
    assert refused(lambda: locate.locate_inputs(root / "x.safetensors", None, None)).endswith("no such file")


def test_the_teacher_of_a_student_without_one_is_none(root):
    weights = root / "data/students/kd/seed0.safetensors"
    log = record.read_record(weights.with_suffix(".json"), RunLog)
    run = log.settings.model_copy(update={"teacher": None})
    record.write_record(weights.with_suffix(".json"), log.model_copy(update={"settings": run}))
    assert locate.locate_inputs(weights, None, root / "data/teacher/model.safetensors").teacher is None
