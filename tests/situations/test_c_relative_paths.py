"""Relative paths in settings, where DVC runs an experiment in a copy of the project, in which they do not exist."""

import numpy as np
import pytest
from papers import PARAMS, make_paper
from paths import ROOT
from PIL import Image
from project import Project
from settings_files import copy_settings, edit

from kdflow import config, data
from kdflow.core import files
from kdflow.models import create_model, save_weights
from kdflow.pipeline import paper, project_folder, work_dir
from kdflow.pipeline.prepare import prepare_dataset
from kdflow.pipeline.teacher import make_teacher


def make_photos(folder):
    """Write six images of each of two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / name / f"{i}.png")


def make_weights(file):
    """Write weights of a teacher of two classes; return their settings, with a path relative to the project."""
    recipe = config.load_recipes(ROOT).models["resnet8"]
    sha256 = save_weights(create_model("resnet8", recipe, 2, 16), file)
    return {"file": f"{file.parent.name}/{file.name}", "sha256": sha256, "top1": 0.0}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project and, as the working directory, a copy of its settings, as `dvc exp run --temp` makes one."""
    project, copy = tmp_path / "project", tmp_path / "project/.dvc/tmp/exps/tmpcopy"
    copy.mkdir(parents=True)
    for root in (project, copy):
        copy_settings(root)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(copy)
    return project


def test_work_and_paths_are_in_the_project(project, monkeypatch):
    assert (project_folder(), work_dir()) == (project, project / ".kdflow")
    monkeypatch.setenv("DVC_ROOT", str(project / "paper"))  # a DVC project below, which DVC then names
    assert project_folder() == project


def test_folder_and_weights_of_the_project_are_read(project, tmp_path):
    make_photos(project / "photos")
    weights = make_weights(project / "weights/teacher.safetensors")
    edit(
        tmp_path / "project/.dvc/tmp/exps/tmpcopy",
        "params.yaml",
        {
            "dataset": {"folder": "photos", "image_size": 16},
            "teacher": "resnet8",
            "teacher_weights": weights,
            "methods": ["kd"],
            "batch_size": 5,
            "compute/loader_workers": 0,
        },
    )
    out = tmp_path / "out"
    prepared = prepare_dataset(config.load(), out / "dataset.h5", out, out / "dataset.json", project_folder())
    assert prepared.source.folder == "photos" and prepared.name == "photos"
    experiment = config.load().model_copy(update={"prepared": prepared})
    make_teacher(experiment, out / "dataset.h5", out / "teacher", out, project_folder())
    assert files.sha256(out / "teacher/model.safetensors") == weights["sha256"]


@pytest.mark.parametrize("given", ["images", "~/images", "/images"])
def test_the_data_folder_is_in_the_project(project, tmp_path, monkeypatch, given):
    read = []
    monkeypatch.setattr(data, "prepare", lambda *arguments: read.append(arguments[2]) or "0" * 64)
    monkeypatch.setattr(data, "class_names", lambda _: ())
    monkeypatch.setenv("HOME", "/home/me")
    expected = {"images": project / "images", "~/images": "/home/me/images", "/images": "/images"}[given]
    edit(tmp_path / "project/.dvc/tmp/exps/tmpcopy", "params.yaml", {"data_folder": given})
    prepare_dataset(config.load(), tmp_path / "d.h5", tmp_path, None, project_folder())
    loaded = make_paper(tmp_path / "p", params=PARAMS.replace("data_folders: {}", f"data_folders: {{digits: {given}}}"))
    paper.prepare(loaded, "digits")
    assert [str(folder) for folder in read] == [str(expected)] * 2


@pytest.mark.slow
def test_an_experiment_in_a_copy_reads_the_project_s_files(tmp_path):
    project = Project(tmp_path)
    make_photos(tmp_path / "photos")
    project.settings(
        dataset={"folder": "photos", "image_size": 16},
        teacher="resnet8",
        teacher_weights=make_weights(tmp_path / "weights/teacher.safetensors"),
        methods=["kd"],
        batch_size=5,
    )
    with (tmp_path / ".gitignore").open("a") as file:
        file.write("/photos/\n/weights/\n")
    project.commit()
    ran, output = project.dvc("exp", "run", "--temp", "teacher")
    assert ran == ["prepare", "teacher"], output
    assert "2 test images" in output and "Ran experiment" in output
