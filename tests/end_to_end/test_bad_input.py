"""Bad input of the stages: one line, exit code 1, no traceback, and earlier outputs are unchanged."""

import hashlib
import io
import json
import shutil

import pytest
import safetensors.torch
import torch
from hostile import Touch
from stage_project import StageProject, refused


@pytest.fixture
def project(finished_stages, tmp_path) -> StageProject:
    """A copy of the finished experiment."""
    shutil.copytree(finished_stages.folder, tmp_path / "project")
    return StageProject(tmp_path / "project")


SETTINGS = [
    ("params.yaml", "epoch", 3, "params.yaml: epoch: unknown key; did you mean 'epochs'?"),
    ("params.yaml", "epochs", "3", "params.yaml: epochs: input should be a valid integer, got '3'"),
    ("params.yaml", "epochs", -3, "params.yaml: epochs: input should be greater than 0, got -3"),
    ("params.yaml", "methods", ["kd", "kd_tlcutmixx"], "params.yaml: methods.1: unknown name 'kd_tlcutmixx'"),
    ("params.yaml", "student", "resnet9", "params.yaml: student: unknown name 'resnet9'; did you mean 'resnet"),
    ("params.yaml", "dataset", "cifar1000", "params.yaml: dataset: unknown name 'cifar1000'; did you mean 'cifar100'?"),
    ("params.yaml", "seeds", [1, 1], "params.yaml: seeds: duplicate entries: 1"),
    ("params.yaml", "teacher_weights.sha256", "f2", "params.yaml: teacher_weights.sha256: string should match"),
    ("params.yaml", "data_folder", "/tmp", "data_folder: digits come with scikit-learn"),
    ("recipes/methods.yaml", "kd.gamma", 1.0, "recipes/methods.yaml: kd.gamma: unknown key"),
    ("recipes/models.yaml", "resnet8.family", "resnt", "recipes/models.yaml: resnet8.family: unknown name 'resnt'"),
    (
        "recipes/datasets.yaml",
        "digits.base_view.crop",
        -1,
        "recipes/datasets.yaml: digits.base_view.crop: input should be",
    ),
]


@pytest.mark.parametrize(("file", "path", "value", "says"), SETTINGS, ids=[f"{s[1]}={s[2]}" for s in SETTINGS])
def test_settings(project, file, path, value, says):
    project.edit(file, path, value)
    refused(project, "prepare", says=says)


def test_settings_that_are_no_yaml(project):
    (project.folder / "params.yaml").write_text("epochs: [1, 2")
    refused(project, "prepare", says="params.yaml: not YAML")


def test_unknown_method_on_the_command_line(project):
    refused(project, "distill", "kdd", says="method: unknown name 'kdd'; did you mean 'kd'?")


def test_missing_or_superfluous_arguments(project):
    refused(project, "distill", says="usage: python -m stages.distill METHOD")
    refused(project, "prepare", "digits", says="usage: python -m stages.prepare")


def test_model_options_that_the_family_refuses(project):
    project.edit("recipes/models.yaml", "resnet14.options.depth", 15)
    project.edit("params.yaml", "student", "resnet14")
    refused(project, "distill", "ce", says="model resnet14: options (recipes/models.yaml): depth must be 6n + 2")


@pytest.mark.parametrize(
    ("method", "path", "value", "says"),
    [
        ("at", "student", "vgg8", "at: the student has 5 feature layers, the teacher 4"),
        (
            "crd",
            "seeds",
            [0, 1],
            "seed 0, seed 1: recipes/methods.yaml: loss: crd: negatives: must be 270 or less",
        ),
        ("kd_tlcutmix", "batch_size", 1, "batch_size: cutmix mixes the images of a batch"),
    ],
)
def test_what_does_not_go_together_is_refused_before_training(project, method, path, value, says):
    project.edit("params.yaml", path, value)
    refused(project, "distill", method, says=says)


@pytest.mark.parametrize("stage", [("teacher",), ("distill", "kd")], ids=" ".join)
def test_a_last_batch_of_one_is_refused_before_the_teacher_is_trained(project, stage):
    project.edit("params.yaml", "student", "mobilenetv2")  # comes to maps of 1x1
    project.edit("params.yaml", "batch_size", 23)
    project.edit("params.yaml", "train_images", 300)
    says = "student mobilenetv2: 300 training images in batches of 23 leave a last one of 1, too few for its batch norm"
    refused(project, *stage, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(project):
    project.edit("params.yaml", "compute.device", "cuda:3")
    refused(project, "distill", "kd", says="compute.device (--device): cuda:3")


# --- weights from a file -----------------------------------------------------------------------------------


def give(project: StageProject, content: bytes, sha256: str | None = None, top1: float = 0.0) -> None:
    file = project.folder / "teacher.pt"
    file.write_bytes(content)
    project.edit("params.yaml", "teacher_weights.file", str(file))
    project.edit("params.yaml", "teacher_weights.sha256", sha256 or hashlib.sha256(content).hexdigest())
    project.edit("params.yaml", "teacher_weights.top1", top1)


def exported(project: StageProject) -> bytes:
    return (project.folder / "data/teacher/model.safetensors").read_bytes()


def test_weights_missing(project):
    give(project, exported(project))
    (project.folder / "teacher.pt").unlink()
    refused(project, "teacher", says="teacher.pt: no such file")


def test_weights_with_another_hash(project):
    give(project, exported(project), sha256="0" * 64)
    refused(project, "teacher", says="expected " + "0" * 64)


def test_weights_that_measure_less_than_expected(project):
    give(project, exported(project), top1=100.0)
    refused(project, "teacher", says="% top-1, expected 100.00 (at most 0.5 lower)")


def test_weights_of_another_architecture(project):
    give(project, exported(project))
    project.edit("params.yaml", "teacher", "resnet20")
    refused(
        project, "teacher", says="teacher.pt: weights of another architecture: 9 convolutions instead of 21, layer1.1"
    )


def test_weights_in_another_form_are_the_same_teacher(project):
    before, content = exported(project), io.BytesIO()
    state = safetensors.torch.load(before)
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, content)
    give(project, content.getvalue())
    assert project.stage("teacher").returncode == 0
    assert exported(project) == before
    source = json.loads((project.folder / "data/teacher/record.json").read_text())["source"]
    assert source.startswith("weights from a file, sha256 ")
    assert "'state_dict' used" in source and "'module.'" in source


def test_weights_that_would_run_code(project):
    content = io.BytesIO()
    torch.save(Touch(project.folder / "ran"), content)
    give(project, content.getvalue())
    refused(project, "teacher", says="teacher.pt: refused")
    assert not (project.folder / "ran").exists()


def test_weights_cut_short(project):
    give(project, exported(project)[:-10])
    refused(project, "teacher", says="teacher.pt: ")


# --- damaged outputs and a full disk -----------------------------------------------------------------------


def test_a_damaged_dataset(project):
    file = project.folder / "data/dataset.h5"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused(project, "distill", "kd", says="data/dataset.h5: content differs from its hash")


def test_a_dataset_cut_short(project):
    file = project.folder / "data/dataset.h5"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(project, "evaluate", "ce", says="data/dataset.h5: damaged, or not a dataset file of kdflow")


def test_students_that_are_not_those_of_their_log(project):
    file = project.folder / "data/students/ce/seed0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(project, "evaluate", "ce", says="data/students/ce/seed0.safetensors: sha256 is")


@pytest.mark.parametrize("content", ["", "[1, 2", "[1, 2]", '{"a": 1}', None])
def test_damaged_teacher_classes(project, content):
    file = project.folder / "data/teacher/teacher_classes.json"
    file.write_text(content) if content is not None else file.unlink()
    says = "expected a list of classes for 1497 test images" if content is not None else "no such file"
    refused(project, "evaluate", "ce", says=f"data/teacher/teacher_classes.json: {says}")


def test_a_full_disk_under_the_dataset(project):
    refused(project, "prepare", largest_file=100_000, says="data/dataset.h5: File too large")


def test_a_full_disk_under_a_checkpoint(project):
    refused(project, "distill", "kd", largest_file=50_000, says="checkpoint.safetensors: File too large")


def test_a_full_disk_under_a_record(project):
    refused(project, "evaluate", "ce", largest_file=100, says="data/records/ce/seed0.json: File too large")
