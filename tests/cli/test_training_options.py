"""Options of `kdflow distill` for training: each becomes its setting, and bad values are one line."""

from pathlib import Path

import pytest
from distillation import options_for
from paths import ROOT
from typer.testing import CliRunner

from kdflow import cli, config
from kdflow.cli.training_options import OPTIONS
from kdflow.config import Precision, TeacherTrainingChanges
from kdflow.core.errors import UserError
from kdflow.pipeline import distill_options, one_command
from kdflow.pipeline.distill_options import DistillOptions

INITIAL = {"teacher_init": "cifar100_resnet56", "student_init": "ResNet18_Weights.DEFAULT"}
GIVEN = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "lr": 0.5,
    "batch_size": 7,
    "weight_decay": 0.25,
    "warmup_epochs": 2,
    "label_smoothing": 0.125,
    "ema": 0.75,
    "clip_grad": 3.5,
    "class_balance": "sampler",
    "val_share": 0.1,
    "early_stop": 4,
    "freeze_backbone": 3,
}
NEEDED = ["--data", "photos", "--teacher", "resnet20", "--student", "resnet8"]


class DoneError(Exception):
    """Raised where training would start."""


@pytest.fixture
def passed(monkeypatch):
    """Return the options that the command passes on."""
    found: list[DistillOptions] = []

    def distill(options, root):
        found.append(options)
        raise DoneError

    monkeypatch.setattr(one_command, "distill", distill)
    return found


def run(*options):
    return CliRunner().invoke(cli.app, ["distill", *NEEDED, *options])


def flag(name):
    return f"--{name.replace('_', '-')}"


def test_every_setting_has_an_option():
    assert {name for name, *_ in OPTIONS} == {*TeacherTrainingChanges.model_fields, "temperature", *INITIAL} - {
        "momentum"
    }
    help_text = CliRunner().invoke(cli.app, ["distill", "--help"], env={"COLUMNS": "200"}).output
    assert all(flag(name) in help_text for name, *_ in OPTIONS) and "--amp" in help_text


def test_options_become_settings(passed):
    arguments = [text for name, value in GIVEN.items() for text in (flag(name), str(value))]
    run(*arguments, "--temperature", "2", "--amp")
    (options,) = passed
    assert options.training == TeacherTrainingChanges(**GIVEN)
    assert options.temperature == 2.0
    assert options.precision == Precision(student="bfloat16", teacher="bfloat16")


@pytest.mark.parametrize(
    ("option", "setting", "usual", "value"),
    [
        ("--method kd", "method", "kd_tlcutmix_pick", "kd"),
        ("--epochs 7", "epochs", None, 7),
        ("--teacher-epochs 9", "teacher_epochs", None, 9),
        ("--teacher-model resnet14", "teacher_model", None, "resnet14"),
        ("--teacher-classes natural", "teacher_classes", None, "natural"),
        ("--teacher-option width=2", "teacher_options", (), ("width=2",)),
        ("--student-option width=3", "student_options", (), ("width=3",)),
        ("--teacher resnet14", "more_teachers", (), ("resnet14",)),
        ("--ensemble logits", "ensemble", "probabilities", "logits"),
        ("--image-size 48", "data.image_size", 64, 48),
        ("--side 80", "data.side", None, 80),
        ("--test-part val", "data.test_part", None, "val"),
        ("--no-flip", "data.flip", True, False),
        ("--skip-broken", "data.skip_broken", False, True),
        ("--cache", "data.cache", False, True),
        ("--seeds 5", "seeds", 1, 5),
        ("--compare", "compare", False, True),
        ("--out x", "out", Path("out"), Path("x")),
        ("--device cuda:1", "compute.device", "auto", "cuda:1"),
        ("--threads 3", "compute.threads", 1, 3),
        ("--workers 0", "compute.loader_workers", None, 0),
    ],
)
def test_each_other_option_becomes_its_setting(passed, option, setting, usual, value):
    run()
    run(*option.split())
    found = []
    for options in passed:
        for name in setting.split("."):
            options = getattr(options, name)  # noqa: PLW2901
        found.append(options)
    assert found == [usual, value]


def test_trackers_become_settings(passed):
    run("--log", "tensorboard", "--log", "dvclive")
    assert passed[0].compute.log == ("tensorboard", "dvclive")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], "compute.log.0: input should be 'tensorboard', 'wandb', 'mlflow' or 'dvclive'"),
        (["wandb", "wandb"], "compute.log: duplicate entries: wandb"),
    ],
)
def test_wrong_trackers_are_one_line(passed, names, message):
    done = run(*(text for name in names for text in ("--log", name)))
    assert isinstance(done.exception, UserError) and message in str(done.exception)
    assert "\n" not in str(done.exception) and passed == []


def test_without_options_nothing_changes(passed):
    run()
    assert passed[0].compute.log == ()
    assert passed[0].training == TeacherTrainingChanges() and passed[0].precision == Precision()


def test_the_image_size_is_that_of_the_initial_weights(passed):
    root = ["--root", str(ROOT)]
    run(*root, "--teacher-init", "cifar100_resnet56")
    run(*root, "--student-init", "ResNet18_Weights.DEFAULT", "--freeze-backbone", "2")
    run(*root, "--teacher-init", "cifar100_resnet56", "--image-size", "48")
    run(*root)
    assert [options.data.image_size for options in passed] == [32, 224, 48, 64]
    assert passed[1].student_init == "ResNet18_Weights.DEFAULT" and passed[1].teacher_init is None


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("optimizer", "lion", "training.optimizer: input should be 'sgd' or 'adamw', got 'lion'"),
        ("val_share", "1", "training.val_share: input should be less than 1"),
        ("clip_grad", "0", "training.clip_grad: input should be greater than 0"),
        ("temperature", "0", "temperature: input should be greater than or equal to 0.01"),
        ("batch_size", "0", "training.batch_size: input should be greater than 0"),
        ("lr", "nan", "training.lr: input should be"),
    ],
)
def test_bad_values_are_one_line(passed, option, value, words):
    error = run(flag(option), value).exception
    assert isinstance(error, UserError)
    assert words in str(error) and "\n" not in str(error)
    assert not passed


def test_options_change_the_runs_of_teacher_and_students(tmp_path):
    given = {"training": TeacherTrainingChanges(**GIVEN), "epochs": 5, "temperature": 2.0}
    options = options_for(tmp_path, **given, student_init="cifar100_resnet56")
    params = distill_options.make_experiment(options, config.load_recipes(ROOT)).params
    assert (params.training.freeze_backbone, params.teacher_training.freeze_backbone) == (3, None)
    assert (params.lr, params.batch_size, params.training.ema, params.temperature) == (0.5, 7, 0.75, 2.0)
    assert params.teacher_training == options.training.model_copy(update={"freeze_backbone": None})
