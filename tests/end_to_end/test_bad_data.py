"""Bad datasets, from a folder or an archive: one line, exit code 1, no traceback, and earlier outputs are unchanged."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hostile import Touch
from stage_project import StageProject, refused
from web import serving


@pytest.fixture
def project(finished_stages, tmp_path) -> StageProject:
    """A copy of the finished experiment."""
    shutil.copytree(finished_stages.folder, tmp_path / "project")
    return StageProject(tmp_path / "project")


def take_cifar(project: StageProject) -> Path:
    """Set the project's dataset to CIFAR-100 from a folder in the project."""
    project.edit("params.yaml", "dataset", "cifar100")
    project.edit("params.yaml", "data_folder", str(project.folder / "source"))
    project.edit("recipes/datasets.yaml", "cifar100.data.train_images", 200)
    project.edit("recipes/datasets.yaml", "cifar100.data.test_images", 100)
    return project.folder / "source/cifar-100-python"


@pytest.fixture(scope="module")
def prepared_cifar(finished_stages, tmp_path_factory) -> Path:
    """The same with 200 + 100 images in CIFAR-100's layout, read from a folder."""
    folder = tmp_path_factory.mktemp("cifar") / "project"
    shutil.copytree(finished_stages.folder, folder)
    source = take_cifar(StageProject(folder))
    source.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 200), ("test", 100)):
        rows = random.integers(256, size=(count, 3072), dtype=np.uint8)
        content = {b"data": rows, b"fine_labels": [i % 100 for i in range(count)]}
        (source / part).write_bytes(pickle.dumps(content, protocol=2))
    (source / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"class %d" % i for i in range(100)]}))
    done = StageProject(folder).stage("prepare")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cifar(prepared_cifar, project) -> Path:
    """The folder from which `project` reads CIFAR-100."""
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
