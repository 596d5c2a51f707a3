"""Bad input at the stages themselves: one clear line, exit code 1, no traceback, earlier outputs as they were."""

import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import resource
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile import Touch
from paths import ROOT
from ruamel.yaml import YAML
from web import serving


class Project:
    """Settings of its own, the stages of this repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(self, *command: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a stage as DVC does; in this process, which has torch, where it starts none and nothing is limited."""
        script, *arguments = command
        file = str(ROOT / f"stages/{script}.py")
        if script == "distill" or largest_file is not None:
            return self._process([sys.executable, file, *arguments], largest_file)
        out, err, code = io.StringIO(), io.StringIO(), 0
        before, sys.argv = sys.argv, [file, *arguments]
        try:
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(file, run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    def _process(self, command: list[str], largest_file: int | None) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            preexec_fn=limit,
        )

    def edit(self, file: str, path: str, value: object) -> None:
        """Set the entry at a dotted path of a YAML file."""
        yaml = YAML()
        content = yaml.load(self.folder / file)
        *above, last = path.split(".")
        functools.reduce(lambda part, key: part[key], above, content)[last] = value
        yaml.dump(content, self.folder / file)

    def contents(self) -> dict[Path, bytes]:
        """Every output, and whatever was left beside it."""
        return {file: file.read_bytes() for file in (self.folder / "data").rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project whose dataset, teacher and one student are made, at one epoch."""
    folder = tmp_path_factory.mktemp("bad-input")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    project = Project(folder)
    project.edit("params.yaml", "teacher_epochs", 1)
    project.edit("params.yaml", "epochs", 1)
    project.edit("params.yaml", "seeds", [0])
    project.edit("params.yaml", "teacher", "resnet8")
    for command in (("prepare",), ("teacher",), ("logits",), ("distill", "ce"), ("evaluate", "ce")):
        done = project.stage(*command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(prepared, tmp_path) -> Project:
    shutil.copytree(prepared, tmp_path / "project")
    return Project(tmp_path / "project")


def refused(project: Project, *command: str, says: str, largest_file: int | None = None) -> None:
    before = project.contents()
    done = project.stage(*command, largest_file=largest_file)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line and "%|" not in line]  # a download's progress apart
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert says in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert project.contents() == before


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
    refused(project, "distill", says="usage: distill.py METHOD")
    refused(project, "prepare", "digits", says="usage: prepare.py")


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


# --- a dataset from a folder or an archive -----------------------------------------------------------------


def take_cifar(project: Project) -> Path:
    """Set the project to CIFAR-100 from a folder of its own."""
    project.edit("params.yaml", "dataset", "cifar100")
    project.edit("params.yaml", "data_folder", str(project.folder / "source"))
    project.edit("recipes/datasets.yaml", "cifar100.data.train_images", 200)
    project.edit("recipes/datasets.yaml", "cifar100.data.test_images", 100)
    return project.folder / "source/cifar-100-python"


@pytest.fixture(scope="module")
def prepared_cifar(prepared, tmp_path_factory) -> Path:
    """The same with 200 + 100 images in CIFAR-100's layout, taken from a folder."""
    folder = tmp_path_factory.mktemp("cifar") / "project"
    shutil.copytree(prepared, folder)
    source = take_cifar(Project(folder))
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 200), ("test", 100)):
        rows = random.integers(256, size=(count, 3072), dtype=np.uint8)
        content = {b"data": rows, b"fine_labels": [i % 100 for i in range(count)]}
        (source / part).write_bytes(pickle.dumps(content, protocol=2))
    (source / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"class %d" % i for i in range(100)]}))
    done = Project(folder).stage("prepare")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cifar(prepared_cifar, project) -> Path:
    """The folder that `project` takes its CIFAR-100 from."""
    shutil.rmtree(project.folder)
    shutil.copytree(prepared_cifar, project.folder)
    return take_cifar(project)


def test_data_folder_missing(project, cifar):
    project.edit("params.yaml", "data_folder", "/no/such/folder")
    refused(project, "prepare", says="data_folder: /no/such/folder: no such folder")


def test_data_folder_without_a_file(project, cifar):
    (cifar / "meta").unlink()
    refused(project, "prepare", says="missing: meta")


def test_data_folder_unreadable(project, cifar):
    if os.getuid() == 0:
        pytest.skip("root may read everything")
    (cifar / "train").chmod(0)
    refused(project, "prepare", says="train: Permission denied")


def test_data_folder_short(project, cifar):
    project.edit("recipes/datasets.yaml", "cifar100.data.train_images", 300)
    refused(project, "prepare", says="cifar100: train images: expected uint8 [300, 32, 32, 3], found uint8 [200")


def test_data_file_cut_short(project, cifar):
    (cifar / "train").write_bytes((cifar / "train").read_bytes()[:-1000])
    refused(project, "prepare", says="cifar-100-python/train: ")


def test_data_file_that_would_run_code(project, cifar):
    (cifar / "train").write_bytes(pickle.dumps(Touch(project.folder / "ran")))
    refused(project, "prepare", says="cifar-100-python/train: refused")
    assert not (project.folder / "ran").exists()


@pytest.fixture
def archive(project, cifar) -> Path:
    """The folder as an archive on a web server of this machine; the project downloads it."""
    file = project.folder / "www/cifar-100-python.tar.gz"
    file.parent.mkdir()
    with tarfile.open(file, "w:gz") as tar:
        tar.add(cifar, cifar.name)
    shutil.rmtree(cifar)

    with serving(file.parent) as address:
        project.edit("params.yaml", "data_folder", None)
        project.edit("recipes/datasets.yaml", "cifar100.data.url", f"{address}/{file.name}")
        project.edit("recipes/datasets.yaml", "cifar100.data.md5", hashlib.md5(file.read_bytes()).hexdigest())
        yield file


def test_a_download_with_its_checksum_is_taken(project, archive):
    before = (project.folder / "data/dataset.h5").read_bytes()
    assert project.stage("prepare").returncode == 0
    assert (project.folder / "data/dataset.h5").read_bytes() == before


def test_a_download_with_another_checksum(project, archive):
    archive.write_bytes(archive.read_bytes() + b"!")
    refused(project, "prepare", says=": md5 is ")
    assert [file.name for file in project.folder.glob(".kdflow/downloads/*")] == ["lock"]


def test_a_download_that_is_not_there(project, archive):
    archive.unlink()
    refused(project, "prepare", says="or set data_folder to a local copy")


def test_an_archive_cut_short(project, archive):
    archive.write_bytes(archive.read_bytes()[:-100])
    project.edit("params.yaml", "data_folder", str(archive.parent))
    refused(project, "prepare", says="damaged, cut short, or another archive")
    project.edit("recipes/datasets.yaml", "cifar100.data.md5", hashlib.md5(archive.read_bytes()).hexdigest())
    refused(project, "prepare", says="damaged, or not an archive (Compressed file ended")


def test_an_archive_of_something_else(project, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())
    project.edit("params.yaml", "data_folder", str(archive.parent))
    project.edit("recipes/datasets.yaml", "cifar100.data.md5", hashlib.md5(archive.read_bytes()).hexdigest())
    refused(project, "prepare", says="refused: '../escaped' is outside of cifar-100-python/")


# --- weights from a file -----------------------------------------------------------------------------------


def give(project: Project, content: bytes, sha256: str | None = None, top1: float = 0.0) -> None:
    file = project.folder / "teacher.pt"
    file.write_bytes(content)
    project.edit("params.yaml", "teacher_weights.file", str(file))
    project.edit("params.yaml", "teacher_weights.sha256", sha256 or hashlib.sha256(content).hexdigest())
    project.edit("params.yaml", "teacher_weights.top1", top1)


def exported(project: Project) -> bytes:
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
