"""One distillation in one command: bad options are refused before training, and an interrupted command is resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distillation import options_for
from paths import ROOT
from PIL import Image
from shipped import make
from tree import make_tree

from kdflow import config
from kdflow.config import TeacherTrainingChanges
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.data import load
from kdflow.models import create_model, load_exact
from kdflow.pipeline import distill_options, one_command
from kdflow.report.gain import Summary
from kdflow.training import record
from kdflow.training.evaluate import predict_logits
from kdflow.training.record import RunLog, RunRecord, TeacherRecord

EPOCHS = 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"student": "resnet9"},
            "--student (recipes/models.yaml or torchvision): unknown name 'resnet9'; did you mean",
        ),
        ({"student": "keras:resnet9"}, "--student: keras:resnet9: family: unknown name 'keras'; allowed: timm, torchv"),
        ({"teacher": "resnet"}, "--teacher (recipes/models.yaml or torchvision): unknown name 'resnet'"),
        ({"teacher": "weights.pt"}, "--teacher: weights.pt: no such file, and no model of that name"),
        ({"teacher": "timm:resnet18.x_in1k"}, "images: no such folder"),
        ({"teacher": "."}, "--teacher: .: is a folder; give a file in it, such as model.safetensors"),
        ({"teacher_model": "resnet8"}, "--teacher-model: resnet14 is a model; --teacher-model is for a file of"),
        ({"method": "kdd"}, "--method: unknown name 'kdd'; did you mean 'kd'?"),
        ({"method": "ce"}, "--method: ce needs no teacher; --compare adds ce to another method"),
        ({"method": "crd", "student": "squeezenet1_0"}, "--method: crd compares features, and squeezenet1_0 (student)"),
        ({"method": "dkd", "student": "squeezenet1_0"}, "images: no such folder"),  # dkd needs no features
        ({"out": Path("images/out")}, "--out: images/out: is within --data, where it would be taken for a class"),
        ({"training": TeacherTrainingChanges(early_stop=3)}, "kdflow distill: early_stop: needs val_share"),
        ({"training": TeacherTrainingChanges(warmup_epochs=2)}, "kdflow distill: warmup_epochs: 2 must be less than"),
        ({"more_teachers": ("resnet9",)}, "--teacher (recipes/models.yaml or torchvision): unknown name 'resnet9'"),
        ({"more_teachers": ("w.pt",)}, "--teacher: w.pt: no such file, and no model of that name"),
        (
            {"more_teachers": ("resnet8",), "method": "at"},
            "methods: at needs features of the teacher, and resnet14+",
        ),
        ({"more_teachers": ("resnet8",), "teacher_classes": "auto"}, "--teacher-classes: is for one --teacher, and 2"),
        ({"more_teachers": ("resnet8",), "teacher_options": ("depth=8",)}, "--teacher-option: "),
        ({"more_teachers": ("resnet8",), "teacher_init": "cifar100_resnet56"}, "--teacher-init: is for one --teacher"),
        ({"more_teachers": ("resnet8",), "student": "resnet14"}, "images: no such folder"),
        ({}, "images: no such folder"),
    ],
)
def test_what_does_not_go_together(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        one_command.distill(options_for(tmp_path, **options), ROOT)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/teacher").exists()
    assert not (tmp_path / "images").exists()


def test_a_file_of_weights_needs_a_log_or_the_name_of_its_model(tmp_path):
    weights = make(tmp_path, "digits")
    recipes = config.load_recipes(ROOT)
    logged, file = distill_options._teacher(options_for(tmp_path, teacher=str(weights)), recipes)
    assert (logged.name, logged.model.options["depth"], file) == ("smaller", 8, weights)
    weights.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="its architecture is not known; give --teacher-model MODEL"):
        distill_options._teacher(options_for(tmp_path, teacher=str(weights)), recipes)
    named, _ = distill_options._teacher(options_for(tmp_path, teacher=str(weights), teacher_model="wrn_16_2"), recipes)
    assert named.model == recipes.models["wrn_16_2"]


def test_names_of_models():
    assert str(config.unknown_name("--student", "zzz", ["b", "a", "a"])).endswith("allowed: a, b")
    recipes = config.load_recipes(ROOT)
    assert distill_options._model("--student", "resnet50", recipes).model.family == "bottleneck", "a recipe comes first"
    library = distill_options._model("--student", "torchvision:resnet50", recipes)
    assert (library.name, library.model.options) == ("torchvision:resnet50", {"name": "resnet50"})
    assert distill_options._model("--student", "mobilenet_v2", recipes).name == "mobilenet_v2"


def test_several_teachers_are_an_ensemble(tmp_path):
    weights, recipes = make(tmp_path, "digits"), config.load_recipes(ROOT)
    more = {"more_teachers": (str(weights), "resnet14"), "ensemble": "logits"}
    experiment = distill_options.make_experiment(options_for(tmp_path, **more, temperature=3.0), recipes)
    name = experiment.params.teacher
    assert name == "resnet14+smaller+resnet14"
    options = experiment.models[name].options
    assert (options["combine"], options["temperature"]) == ("logits", 3.0)
    members = [(one.params.teacher, seed, one.params.teacher_weights.file) for one, seed in experiment.members()]
    assert members == [("resnet14", 0, None), ("smaller", 0, str(weights)), ("resnet14", 1, None)]
    assert not experiment.params.teacher_weights.are_given


# --- real runs ---------------------------------------------------------------------------------------------


def command(folder: Path, *options: str) -> list[str]:
    given = ["--data", "images", "--teacher", "resnet14", "--student", "resnet8", "--image-size", "32", "--compare"]
    budget = ["--epochs", str(EPOCHS), "--root", str(ROOT), "--out", "out", "--device", "cpu"]
    return [sys.executable, "-m", "kdflow.cli", "distill", *given, *budget, *options]


def finished(folder: Path, *options: str) -> str:
    done = subprocess.run(command(folder, *options), cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def weights_of(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): files.sha256(f) for f in sorted((folder / "out").rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    make_tree(folder / "images")
    (folder / "output").write_text(finished(folder))
    return folder


@pytest.mark.slow
def test_one_command_makes_all_of_it(undisturbed):
    output, out = (undisturbed / "output").read_text(), undisturbed / "out"
    summary = record.read_record(out / "summary.json", Summary)
    assert [model.role for model in summary.models] == ["teacher", "student, kd_tlcutmix_pick", "student, ce"]
    runs = {
        name: record.read_record(out / f"records/{name}/seed0.json", RunRecord) for name in ("kd_tlcutmix_pick", "ce")
    }
    assert summary.gain.difference.mean == runs["kd_tlcutmix_pick"].final.top1 - runs["ce"].final.top1
    assert (summary.train_images, summary.test_images, summary.epochs) == (12, 6, EPOCHS)
    assert runs["kd_tlcutmix_pick"].budget.teacher.epochs == EPOCHS and runs["ce"].budget.teacher is None
    assert f"Not a full run: teacher with {EPOCHS} of " in output.replace("\n", " ")
    assert runs["ce"].class_names == ("n01 dark", "n02 hell ä")
    assert summary.gain.verdict in output.replace("\n", " ")
    exported = output.rsplit("next: kdflow ", 1)[1].split()
    assert exported[:2] == ["export", "out/students/kd_tlcutmix_pick/seed0.safetensors"]
    assert (undisturbed / exported[1]).is_file()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.slow
def test_a_teacher_from_a_file_keeps_the_normalisation_that_it_was_trained_with(tmp_path):
    make_tree(tmp_path / "images")
    one_command.distill(options_for(tmp_path, epochs=1), ROOT)
    weights = tmp_path / "out/teacher/model.safetensors"
    trained = record.read_record(weights.with_name("training.json"), RunLog).settings.base_view
    other = tmp_path / "other"
    for image in make_tree(other / "images").rglob("*.*"):
        if image.suffix != ".txt":
            Image.open(image).convert("L").point(lambda value: value // 2).save(image)  # other mean and std
    for again in range(2):  # then from the record of a teacher from a file
        out = other / f"out{again}"
        one_command.distill(options_for(other, epochs=1, teacher=str(weights), out=out), ROOT)
        made = record.read_record(out / "teacher/record.json", TeacherRecord)
        run = record.read_record(out / "students/kd/seed0.json", RunLog).settings
        assert (made.normalisation.mean, made.normalisation.std) == (trained.mean, trained.std)
        assert (
            (run.teacher.mean, run.teacher.std)
            == (trained.mean, trained.std)
            != (run.base_view.mean, run.base_view.std)
        )
        test = load(out / "dataset.h5", 12, torch.device("cpu")).test
        model = create_model(run.teacher.name, run.teacher.model, 2, 32)
        load_exact(model, out / "teacher/model.safetensors")
        classes = json.loads((out / "teacher/teacher_classes.json").read_text())
        assert predict_logits(model, test, trained).argmax(1).tolist() == classes
        weights = out / "teacher/model.safetensors"


def test_an_ensemble_is_trained_once(tmp_path):
    make_tree(tmp_path / "images")
    finished(tmp_path, "--teacher", "resnet14", "--epochs", "2")
    before = weights_of(tmp_path)
    assert {"out/teacher/members/0/model.safetensors", "out/teacher/members/1/model.safetensors"} <= before.keys()
    output = finished(tmp_path, "--teacher", "resnet14", "--epochs", "2")
    assert output.count("teacher resnet14: exists") == 2
    assert weights_of(tmp_path) == before
    students = record.read_record(tmp_path / "out/records/kd_tlcutmix_pick/seed0.json", RunRecord)
    assert len(set(students.teacher_members)) == 2


@pytest.mark.slow
@pytest.mark.long
def test_again_makes_nothing_and_more_seeds_only_those(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "again"))
    before = weights_of(folder)
    shutil.rmtree(folder / "images")
    shutil.copytree(undisturbed / "images", folder / "images")
    output = finished(folder, "--seeds", "2")
    assert "teacher resnet14: exists" in output
    assert "ce seed 1" in output
    assert "ce seed 0" not in output
    after = weights_of(folder)
    assert before.items() < after.items()
    assert len(after) == len(before) + 2
    assert json.loads((folder / "out/summary.json").read_text())["gain"]["difference"]["n"] == 2


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupted_command_is_resumed_to_the_same_weights(undisturbed, tmp_path):
    make_tree(tmp_path / "images")
    running = subprocess.Popen(
        command(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("out/.kdflow/runs/*/checkpoint.safetensors")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, message = running.communicate(timeout=60)
    assert running.returncode == 130
    assert message.decode().startswith("interrupted: ")
    assert not (tmp_path / "out/summary.json").exists()
    assert "resumed after epoch" in finished(tmp_path)
    assert weights_of(tmp_path) == weights_of(undisturbed)
