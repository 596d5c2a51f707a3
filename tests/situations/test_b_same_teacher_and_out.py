"""`kdflow distill` into a folder, with that folder's teacher or student as the teacher."""

from pathlib import Path

import pytest
from factories import make_teacher
from paths import ROOT
from tree import make_tree

from kdflow import config
from kdflow.config import Compute, UserFolder
from kdflow.core.errors import UserError
from kdflow.pipeline import distill_options, one_command
from kdflow.pipeline.distill_options import DistillOptions
from kdflow.training import record
from kdflow.training.record import TeacherRecord

COMPUTE = Compute(device="cpu", threads=1, max_parallel_runs=None, processes_per_run=1, replay_gb=1.0, loader_workers=0)


def options_for(folder: Path, teacher: str, out: str = "out", model: str | None = None) -> DistillOptions:
    return DistillOptions(
        data=UserFolder(folder=str(folder / "images"), image_size=32),
        teacher=teacher,
        student="resnet8",
        method="kd",
        out=folder / out,
        epochs=1,
        teacher_epochs=None,
        teacher_model=model,
        seeds=1,
        compare=False,
        compute=COMPUTE,
    )


def contents(out: Path) -> dict[str, tuple[bytes, int]]:
    """Return the results of training, with the times of their last change."""
    files = [*out.glob("teacher/model.safetensors"), *out.glob("teacher/training.json"), *out.glob("students/*/*")]
    return {str(file.relative_to(out)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.mark.slow
def test_the_teacher_of_the_folder_is_kept_with_its_log_and_nothing_is_trained_again(tmp_path, capsys):
    make_tree(tmp_path / "images")
    one_command.distill(options_for(tmp_path, "resnet14"), ROOT)
    before, teacher_record = contents(tmp_path / "out"), (tmp_path / "out/teacher/record.json").read_bytes()
    assert len(before) == 4
    file = str(tmp_path / "out/teacher/model.safetensors")
    for teacher in (file, file, "resnet14"):
        capsys.readouterr()
        one_command.distill(options_for(tmp_path, teacher), ROOT)
        assert contents(tmp_path / "out") == before
        assert (tmp_path / "out/teacher/record.json").read_bytes() == teacher_record
    assert "teacher resnet14: exists" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_whose_teacher_came_from_a_file_knows_its_model(tmp_path):
    make_tree(tmp_path / "images")
    one_command.distill(options_for(tmp_path, "resnet14"), ROOT)
    file = (tmp_path / "out/teacher/model.safetensors").rename(tmp_path / "weights.safetensors")
    one_command.distill(options_for(tmp_path, str(file), "other", "resnet14"), ROOT)
    before = contents(tmp_path / "other")
    assert len(before) == 3
    summary = one_command.distill(
        options_for(tmp_path, str(tmp_path / "other/teacher/model.safetensors"), "other"), ROOT
    )
    assert contents(tmp_path / "other") == before
    assert summary.teacher_source.startswith("weights from a file, sha256 ")


def test_the_record_beside_a_teacher_names_its_model(tmp_path):
    recipes, file = config.load_recipes(ROOT), tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="its architecture is not known; give --teacher-model MODEL"):
        distill_options._teacher(options_for(tmp_path, str(file)), recipes)
    for name in ("resnet20", "mobilenet_v2", "torchvision:resnet50"):
        result = make_teacher().model_copy(update={"architecture": name})
        record.write_record(tmp_path / "record.json", TeacherRecord(**dict(result)))
        teacher, weights = distill_options._teacher(options_for(tmp_path, str(file)), recipes)
        assert (teacher.name, weights) == (name, file)


def test_a_student_of_the_folder_is_refused_as_its_teacher(tmp_path):
    student = tmp_path / "out/students/kd/seed0.safetensors"
    student.parent.mkdir(parents=True)
    student.write_bytes(b"")
    with pytest.raises(UserError, match="is a student of --out, which may be replaced; choose another --out"):
        distill_options._teacher(options_for(tmp_path, str(student)), config.load_recipes(ROOT))
