"""params.yaml and recipes/: what is read, what a run becomes, and what is refused in one line per mistake."""

import io
import json
import math
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from ruamel.yaml import YAML

from kdflow import config
from kdflow.config import ExtraLoss, Method, Pick, Resize, Settings, StrongView
from kdflow.core.errors import UserError

BASE_RUN = config.load(ROOT).student_run("kd_tlcutmix_pick", 0)
GONE = object()  # as a value: the key is taken away

DATASETS, MODELS, METHODS = "recipes/datasets.yaml", "recipes/models.yaml", "recipes/methods.yaml"
PAIRS = "recipes/pairs.yaml"


def project(root):
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "recipes", root / "recipes", dirs_exist_ok=True)
    return root


def edit(root, file, changes):
    """Set keys of a YAML file of the copy; a slash leads into a nested one."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(root / file)
    for key, value in changes.items():
        *path, last = key.split("/") if isinstance(key, str) else [key]
        place = content
        for part in path:
            place = place[part]
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    yaml.dump(content, root / file)


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)


def with_params(root, **changes):
    edit(root, "params.yaml", changes)
    return config.load(root)


def refused(root):
    with pytest.raises(UserError) as caught:
        config.load(root)
    return str(caught.value).split("\n")


# --- what is shipped ---------------------------------------------------------------------------------------


def test_the_shipped_settings_are_valid():
    experiment = config.load(ROOT)
    shipped = ((DATASETS, experiment.datasets), (MODELS, experiment.models), (METHODS, experiment.methods))
    for file, found in (*shipped, (PAIRS, experiment.pairs)):
        assert list(found) == list(YAML(typ="safe").load(ROOT / file))
    assert {"digits", "cifar100"} <= set(experiment.datasets)


def test_every_shipped_recipe_makes_a_run(root):
    shipped = config.load(root)
    for dataset in (name for name, entry in shipped.datasets.items() if entry.data.reader):
        for model in shipped.models:
            params = shipped.params.model_copy(update={"dataset": dataset, "student": model, "teacher": model})
            experiment = shipped.model_copy(update={"params": params})
            assert experiment.teacher_run().architecture == model
            for method in shipped.methods:
                run = experiment.student_run(method, 1)
                assert (run.dataset, run.architecture, run.seed) == (dataset, model, 1)
                assert run.classes == shipped.datasets[dataset].data.classes
                assert run.method == shipped.methods[method]


def test_cifar100_is_the_field_s_recipe():
    training = config.load(ROOT).datasets["cifar100"].training
    assert (training.epochs, training.batch_size, training.lr) == (240, 64, 0.05)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)


def test_the_shipped_methods_are_those_of_the_paper():
    methods = config.load(ROOT).methods
    assert (methods["kd"].ce, methods["kd"].kl, methods["kd"].tau) == (0.1, 0.9, 4.0)
    assert not methods["ce"].needs_teacher
    assert all(methods[name].needs_teacher for name in methods if not name.startswith("ce"))
    assert methods["kd_tlcutmix"].strong == StrongView(view="cutmix")
    assert methods["kd_tlcutmix_pick"].strong == StrongView(view="cutmix", pick=Pick(criterion="kl", pool=2, keep=0.5))
    weights = {"at": 1000.0, "sp": 3000.0, "cc": 0.02, "pkt": 30000.0, "vid": 1.0, "crd": 0.8}
    for name, weight in weights.items():
        plain, with_kd = methods[name], methods[f"{name}_kd"]
        assert plain == Method(ce=1.0, kl=0.0, loss=ExtraLoss(name=name, weight=weight))
        assert with_kd == Method(ce=1.0, kl=1.0, tau=4.0, loss=ExtraLoss(name=name, weight=weight))


@pytest.mark.parametrize("package", ["views", "labels", "picks", "losses"])
def test_every_part_is_used_by_a_shipped_method(package):
    used = set()
    for method in config.load(ROOT).methods.values():
        strong = method.strong
        used |= {
            "views": {strong and strong.view},
            "labels": {strong and strong.label},
            "picks": {strong and strong.pick and strong.pick.criterion},
            "losses": {method.loss and method.loss.name},
        }[package]
    assert used - {None} == set(config.choices(package))


# --- what a method may be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"ce": 1.0, "kl": 0.0}, False),
        ({"ce": 0.0, "kl": 1.0}, True),
        ({"ce": 1.0, "kl": 0.0, "loss": {"name": "sp", "weight": 1.0}}, True),
        ({"ce": 1.0, "kl": 0.0, "strong": {"view": "cutmix", "label": "mixed", "replaces_x": True}}, False),
        ({"ce": 1.0, "kl": 0.0, "strong": {"view": "cutmix", "weight": 0.5}}, True),
    ],
)
def test_a_teacher_is_asked_where_the_loss_needs_one(root, settings, asked):
    edit(root, METHODS, {"kd": settings})
    experiment = config.load(root)
    assert experiment.methods["kd"].needs_teacher == asked
    run = experiment.student_run("kd", 0)
    assert (run.teacher is not None) == asked
    if asked:
        assert (run.teacher.name, run.teacher.model) == ("resnet20", experiment.models["resnet20"])


@pytest.mark.parametrize(
    ("view", "crop", "flip"),
    [(None, 4, True), ("none", 0, False), ("flip", 0, True), ("flip+crop", 4, True)],
)
def test_the_base_view_is_that_of_the_students(root, view, crop, flip):
    experiment = with_params(root, dataset="cifar100", base_view=view)
    assert (experiment.student_run("kd", 0).base_view.crop, experiment.student_run("kd", 0).base_view.flip) == (
        crop,
        flip,
    )
    assert (experiment.teacher_run().base_view.crop, experiment.teacher_run().base_view.flip) == (4, True)


@pytest.mark.parametrize(
    ("view", "area", "flip"),
    [(None, (0.08, 1.0), True), ("none", None, False), ("flip", None, True), ("flip+crop", (0.08, 1.0), True)],
)
def test_the_base_view_of_resized_images(root, view, area, flip):
    experiment = with_params(root, dataset="imagenet", base_view=view)
    run, full = experiment.student_run("kd", 0), experiment.teacher_run()
    assert (run.base_view.crop, run.base_view.flip, run.base_view.resize) == (0, flip, Resize(side=256, area=area))
    assert (full.base_view.flip, full.base_view.resize) == (True, Resize(side=256, area=(0.08, 1.0)))
    assert config.RunSettings.model_validate_json(run.model_dump_json()) == run


def test_settings_without_resize_say_nothing_of_it(root):
    """Their hash is that of a version without the setting."""
    run = with_params(root, dataset="cifar100").student_run("kd", 0)
    assert "resize" not in run.model_dump(mode="json")["base_view"]
    imagenet = with_params(root, dataset="imagenet").student_run("kd", 0)
    assert "resize" in imagenet.model_dump(mode="json")["base_view"]


def test_imagenet_is_the_field_s_recipe():
    dataset = config.load(ROOT).datasets["imagenet"]
    data, training = dataset.data, dataset.training
    assert (data.classes, data.train_images, data.test_images, data.image_size) == (1000, 1_281_167, 50_000, 224)
    assert (training.epochs, training.batch_size, training.lr, training.weight_decay) == (100, 256, 0.1, 1e-4)
    assert [share * training.epochs for share in training.lr_milestones] == [30, 60, 90]


def test_processes_that_read_are_as_many_as_asked_or_as_there_are_cores(root):
    for asked, found in ((0, 0), (3, 3), (None, min(8, os.cpu_count()))):
        assert with_params(root, **{"compute/loader_workers": asked}).params.compute.resolved_workers == found


def test_choices_are_the_modules_of_a_package():
    assert config.choices("data") == ["cifar100", "digits", "image_folder", "imagenet", "tiny_imagenet"]
    assert "cutmix" in config.choices("views")
    assert "__init__" not in config.choices("models")


# --- defaults and overrides --------------------------------------------------------------------------------


def test_null_means_the_dataset_s_own(root):
    experiment = config.load(root)
    own = experiment.dataset.training
    assert experiment.student_run("kd", 0).training == own
    assert experiment.teacher_run().training == own
    assert experiment.train_images == experiment.dataset.data.train_images == 300


def test_the_learning_rate_of_params_wins_over_the_model_s_over_the_dataset_s(root):
    assert config.load(root).student_run("kd", 0).training.lr == 0.05
    edit(root, MODELS, {"resnet8/lr": 0.01, "resnet20/lr": 0.02})
    experiment = config.load(root)
    assert experiment.student_run("kd", 0).training.lr == 0.01
    assert experiment.teacher_run().training.lr == 0.02
    experiment = with_params(root, lr=0.3)
    assert experiment.student_run("kd", 0).training.lr == 0.3
    assert experiment.teacher_run().training.lr == 0.02, "lr is the students'"


def test_overrides_of_the_students_win_and_leave_the_teacher_alone(root):
    experiment = with_params(root, epochs=3, batch_size=7)
    training = experiment.student_run("kd", 0).training
    assert (training.epochs, training.batch_size) == (3, 7)
    own = experiment.dataset.training
    assert training.model_copy(update={"epochs": own.epochs, "batch_size": own.batch_size}) == own
    assert experiment.teacher_run().training == own


def test_teacher_epochs_are_the_teacher_s(root):
    experiment = with_params(root, teacher_epochs=5)
    assert experiment.teacher_run().training.epochs == 5
    assert experiment.student_run("kd", 0).training.epochs == 40


def test_train_images_hold_for_teacher_and_student(root):
    experiment = with_params(root, train_images=100)
    assert experiment.train_images == 100
    assert experiment.student_run("kd", 0).train_images == experiment.teacher_run().train_images == 100


def test_the_teacher_learns_from_labels_alone(root):
    run = config.load(root).teacher_run()
    assert (run.role, run.architecture, run.seed) == ("teacher", "resnet20", 0)
    assert (run.method.ce, run.method.kl, run.method.strong) == (1.0, 0.0, None)


def test_a_method_of_the_command_line_that_is_unknown_is_refused():
    with pytest.raises(UserError, match="'kd_tlcutmx'; did you mean 'kd_tlcutmix'"):
        config.load(ROOT).student_run("kd_tlcutmx", 0)


# --- the hash of the settings ------------------------------------------------------------------------------


def leaves(value, path=()):
    if isinstance(value, Settings):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*path, name))
    else:
        yield path, value


def changed(value, path, leaf):
    name, *rest = path
    new = changed(getattr(value, name), rest, leaf) if rest else leaf
    return value.model_copy(update={name: new})


def other(leaf):
    """A value near this one."""
    match leaf:
        case bool():
            return not leaf
        case None:
            return 0.25
        case int() | float():
            return leaf + 1
        case str():
            return leaf + "x"
        case tuple():
            return (*leaf[:-1], leaf[-1] / 2) if leaf and isinstance(leaf[-1], float) else (*leaf, "another")
        case dict():
            return {**leaf, "depth": 14}
    raise AssertionError(leaf)


LEAVES = dict(leaves(BASE_RUN))


def test_the_settings_of_a_run_are_all_looked_at():
    assert len(LEAVES) >= 25
    assert ("training", "lr_milestones") in LEAVES
    assert ("method", "strong", "pick", "keep") in LEAVES


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_the_hash_changes_with_every_setting(path):
    altered = changed(BASE_RUN, path, other(LEAVES[path]))
    assert altered != BASE_RUN
    assert altered.sha256 != BASE_RUN.sha256


@given(st.lists(st.sampled_from(sorted(LEAVES)), max_size=4))
@settings(max_examples=50)
def test_two_runs_have_one_hash_only_if_their_settings_are_the_same(paths):
    altered = BASE_RUN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            altered = changed(altered, path, other(LEAVES[path]))
        assert (altered.sha256 == BASE_RUN.sha256) == (altered == BASE_RUN)


def test_the_hash_survives_json_and_another_load(root):
    again = config.load(root).student_run("kd_tlcutmix_pick", 0)
    assert again.sha256 == BASE_RUN.sha256
    assert config.RunSettings.model_validate_json(BASE_RUN.model_dump_json()).sha256 == BASE_RUN.sha256
    assert len(BASE_RUN.sha256) == 64


def test_a_strong_view_changes_the_hash():
    without = BASE_RUN.method.model_copy(update={"strong": None})
    assert BASE_RUN.model_copy(update={"method": without}).sha256 != BASE_RUN.sha256


def test_an_integer_and_the_same_float_have_one_hash(root):
    whole = with_params(root, lr=1).student_run("kd", 0).sha256
    assert whole == with_params(root, lr=1.0).student_run("kd", 0).sha256


def test_where_it_is_computed_does_not_change_the_hash(root):
    where = {"device": "cuda:1", "threads": 7, "max_parallel_runs": 3}
    compute = {**where, "replay_gb": 1.5, "loader_workers": 5, "processes_per_run": 2}
    experiment = with_params(root, compute=compute, data_folder="/elsewhere")
    assert experiment.student_run("kd_tlcutmix_pick", 0).sha256 == BASE_RUN.sha256


def test_the_list_of_methods_and_seeds_does_not_change_a_run(root):
    experiment = with_params(root, methods=["kd"], seeds=[5, 0])
    assert experiment.student_run("kd_tlcutmix_pick", 0).sha256 == BASE_RUN.sha256


# --- what is refused ---------------------------------------------------------------------------------------

PAIR, TOP1 = "resnet56_to_resnet20", {"teacher_top1": 72.34, "student_top1": 69.06}
FULL = {"file": "w.pt", "sha256": "0" * 64, "top1": 70.0}
BAD = {
    # id: file, changes, the field that is named, a word that must be there
    "unknown key": ("params.yaml", {"epocs": 3}, "epocs", "unknown key; did you mean 'epochs'?"),
    "unknown key, nothing close": ("params.yaml", {"zzz": 3}, "zzz", "unknown key; allowed: "),
    "unknown nested key": ("params.yaml", {"compute/devise": "cpu"}, "compute.devise", "did you mean 'device'?"),
    "missing key": ("params.yaml", {"seeds": GONE}, "seeds", "required"),
    "missing nested key": ("params.yaml", {"compute/threads": GONE}, "compute.threads", "required"),
    "epochs as text": ("params.yaml", {"epochs": "240"}, "epochs", "'240'"),
    "epochs as fraction": ("params.yaml", {"epochs": 2.5}, "epochs", "2.5"),
    "epochs as truth": ("params.yaml", {"epochs": True}, "epochs", "True"),
    "epochs negative": ("params.yaml", {"epochs": -1}, "epochs", "-1"),
    "epochs zero": ("params.yaml", {"epochs": 0}, "epochs", "greater than 0"),
    "epochs a list": ("params.yaml", {"epochs": [1]}, "epochs", "[1]"),
    "teacher_epochs zero": ("params.yaml", {"teacher_epochs": 0}, "teacher_epochs", "greater than 0"),
    "batch_size zero": ("params.yaml", {"batch_size": 0}, "batch_size", "greater than 0"),
    "lr zero": ("params.yaml", {"lr": 0}, "lr", "greater than 0"),
    "lr text": ("params.yaml", {"lr": "fast"}, "lr", "'fast'"),
    "lr not a number": ("params.yaml", {"lr": math.nan}, "lr", "nan"),
    "lr infinite": ("params.yaml", {"lr": math.inf}, "lr", "inf"),
    "train_images zero": ("params.yaml", {"train_images": 0}, "train_images", "greater than 0"),
    "train_images too many": ("params.yaml", {"train_images": 301}, "train_images", "digits has 300"),
    "dataset unknown": ("params.yaml", {"dataset": "digit"}, "dataset", "did you mean 'digits'?"),
    "dataset null": ("params.yaml", {"dataset": None}, "dataset", "None"),
    "teacher unknown": ("params.yaml", {"teacher": "resnt20"}, "teacher", "did you mean 'resnet20'?"),
    "student unknown": ("params.yaml", {"student": "resnet8x"}, "student", "did you mean 'resnet8x4'?"),
    "method unknown": ("params.yaml", {"methods": ["ce", "kdd"]}, "methods.1", "did you mean 'kd'?"),
    "methods none": ("params.yaml", {"methods": []}, "methods", "at least 1"),
    "methods a word": ("params.yaml", {"methods": "kd"}, "methods", "'kd'"),
    "methods twice": ("params.yaml", {"methods": ["kd", "ce", "kd"]}, "methods", "once"),
    "seeds none": ("params.yaml", {"seeds": []}, "seeds", "at least 1"),
    "seeds twice": ("params.yaml", {"seeds": [1, 0, 1]}, "seeds", "once"),
    "seed negative": ("params.yaml", {"seeds": [0, -1]}, "seeds.1", "-1"),
    "seed beyond 32 bits": ("params.yaml", {"seeds": [2**32]}, "seeds.0", "4294967296"),
    "seed a fraction": ("params.yaml", {"seeds": [0.5]}, "seeds.0", "0.5"),
    "logits unknown": ("params.yaml", {"teacher_logits": "stored"}, "teacher_logits", "'online'"),
    "weights without hash": ("params.yaml", {"teacher_weights": {**FULL, "sha256": None}}, "teacher_weights", "sha256"),
    "weights without top1": ("params.yaml", {"teacher_weights": {**FULL, "top1": None}}, "teacher_weights", "top1"),
    "weights without file": ("params.yaml", {"teacher_weights": {**FULL, "file": None}}, "teacher_weights", "file"),
    "weights null": ("params.yaml", {"teacher_weights": None}, "teacher_weights", "None"),
    "sha256 short": ("params.yaml", {"teacher_weights": {**FULL, "sha256": "ab"}}, "teacher_weights.sha256", "'ab'"),
    "sha256 capital": ("params.yaml", {"teacher_weights": {**FULL, "sha256": "A" * 64}}, "teacher_weights.sha256", "A"),
    "top1 above 100": ("params.yaml", {"teacher_weights": {**FULL, "top1": 101.0}}, "teacher_weights.top1", "100"),
    "device": ("params.yaml", {"compute/device": "gpu"}, "compute.device", "'gpu'"),
    "threads zero": ("params.yaml", {"compute/threads": 0}, "compute.threads", "greater than 0"),
    "processes none": (
        "params.yaml",
        {"compute/processes_per_run": None},
        "compute.processes_per_run",
        "valid integer",
    ),
    "compute a word": ("params.yaml", {"compute": "cpu"}, "compute", "'cpu'"),
    "family unknown": (MODELS, {"resnet8/family": "resnets"}, "resnet8.family", "did you mean 'resnet'?"),
    "model without family": (MODELS, {"resnet8/family": GONE}, "resnet8.family", "required"),
    "model's lr zero": (MODELS, {"resnet8/lr": 0}, "resnet8.lr", "greater than 0"),
    "model null": (MODELS, {"resnet8": None}, "resnet8", "None"),
    "options a list": (MODELS, {"resnet8/options": [8]}, "resnet8.options", "[8]"),
    "model name with a dot": (MODELS, {"resnet8.4": {"family": "resnet"}}, "'resnet8.4'", "lower-case"),
    "model name with a capital": (MODELS, {"ResNet8": {"family": "resnet"}}, "'ResNet8'", "lower-case"),
    "model name a number": (MODELS, {8: {"family": "resnet"}}, "8", "lower-case"),
    "reader unknown": (DATASETS, {"digits/data/reader": "digit"}, "digits.data.reader", "did you mean 'digits'?"),
    "md5": (DATASETS, {"cifar100/data/md5": "beef"}, "cifar100.data.md5", "'beef'"),
    "one class": (DATASETS, {"digits/data/classes": 1}, "digits.data.classes", "1"),
    "unknown key of views": (DATASETS, {"digits/base_view/krop": 1}, "digits.base_view.krop", "did you mean 'crop'?"),
    "flip not a truth": (DATASETS, {"digits/base_view/flip": "off"}, "digits.base_view.flip", "'off'"),
    "two means": (DATASETS, {"digits/base_view/mean": [0.5, 0.5]}, "digits.base_view.mean", ""),
    "mean no number": (DATASETS, {"digits/base_view/mean": [0.5, 0.5, math.nan]}, "digits.base_view.mean", "nan"),
    "std zero": (DATASETS, {"digits/base_view/std": [0.5, 0.0, 0.5]}, "digits.base_view.std.1", "greater than 0"),
    "two crops": (
        DATASETS,
        {"imagenet/base_view/crop": 4},
        "imagenet.base_view",
        "crop: must be 0 beside resize, got 4",
    ),
    "area reversed": (
        DATASETS,
        {"imagenet/base_view/resize/area": [1, 0.08]},
        "imagenet.base_view.resize",
        "smaller share",
    ),
    "area of nothing": (
        DATASETS,
        {"imagenet/base_view/resize/area": [0, 1]},
        "imagenet.base_view.resize.area.0",
        "than 0",
    ),
    "resized to less": (
        DATASETS,
        {"imagenet/base_view/resize/side": 200},
        "imagenet",
        "200 is less than data.image_size",
    ),
    "unknown key of resize": (
        DATASETS,
        {"imagenet/base_view/resize/sise": 1},
        "imagenet.base_view.resize.sise",
        "'side'?",
    ),
    "workers below zero": (
        "params.yaml",
        {"compute/loader_workers": -1},
        "compute.loader_workers",
        "greater than or equal to 0",
    ),
    "decay after the end": (
        DATASETS,
        {"digits/training/lr_milestones": [1.5]},
        "digits.training.lr_milestones.0",
        "1.5",
    ),
    "decay at 1": (DATASETS, {"digits/training/lr_milestones": [0.5, 1.0]}, "digits.training.lr_milestones.1", "1.0"),
    "decay at 0": (DATASETS, {"digits/training/lr_milestones": [0.0]}, "digits.training.lr_milestones.0", "0.0"),
    "decay twice": (DATASETS, {"digits/training/lr_milestones": [0.5, 0.5]}, "digits.training.lr_milestones", "once"),
    "momentum 1": (DATASETS, {"digits/training/momentum": 1.0}, "digits.training.momentum", "1.0"),
    "eval_every 0": (DATASETS, {"digits/training/eval_every": 0}, "digits.training.eval_every", "greater than 0"),
    "reader without views": (DATASETS, {"digits/base_view": GONE}, "digits", "data.reader is given, base_view not"),
    "reader without all": (
        DATASETS,
        {"digits/base_view": GONE, "digits/training": GONE},
        "digits",
        "base_view and training not",
    ),
    "teacher of a pair": (PAIRS, {f"{PAIR}/teacher": "resnt56"}, f"{PAIR}.teacher", "did you mean 'resnet56'?"),
    "student of a pair": (PAIRS, {f"{PAIR}/student": "resnt20"}, f"{PAIR}.student", "did you mean 'resnet20'?"),
    "dataset of a pair": (PAIRS, {f"{PAIR}/datasets/cifar10": TOP1}, f"{PAIR}.datasets", "did you mean 'cifar100'?"),
    "pair of no dataset": (PAIRS, {f"{PAIR}/datasets": {}}, f"{PAIR}.datasets", "at least 1"),
    "pair's share": (PAIRS, {f"{PAIR}/datasets/cifar100/student_top1": 101.0}, f"{PAIR}.datasets.cifar100", "101.0"),
    "no loss": (METHODS, {"kd/ce": 0.0, "kd/kl": 0.0}, "kd", "both 0"),
    "strong view without kl": (METHODS, {"kd_tlcutmix/kl": 0.0}, "kd_tlcutmix", "kl"),
    "tau 0": (METHODS, {"kd/tau": 0.0}, "kd.tau", "greater than 0"),
    "ce negative": (METHODS, {"kd/ce": -0.1}, "kd.ce", "-0.1"),
    "mix unknown": (METHODS, {"kd_tlcutmix/strong/view": "cutmx"}, "kd_tlcutmix.strong.view", "did you mean 'cutmix'?"),
    "pick unknown": (
        METHODS,
        {"kd_tlcutmix/strong/pick": {"criterion": "ce"}},
        "kd_tlcutmix.strong.pick.criterion",
        "allowed: kl",
    ),
    "pick of nothing": (
        METHODS,
        {"kd_tlcutmix/strong/pick": {"criterion": "kl", "keep": 1.0}},
        "kd_tlcutmix.strong.pick.keep",
        "less than 1",
    ),
    "pick of one draw": (
        METHODS,
        {"kd_tlcutmix/strong/pick": {"criterion": "kl", "pool": 1}},
        "kd_tlcutmix.strong.pick.pool",
        "equal to 2",
    ),
    "pick of identity": (
        METHODS,
        {"kd_identity/strong/pick": {"criterion": "kl"}},
        "kd_identity.strong",
        "is the same",
    ),
    "label unknown": (METHODS, {"kd_cutmix/strong/label": "mixd"}, "kd_cutmix.strong.label", "did you mean 'mixed'?"),
    "loss unknown": (METHODS, {"at/loss/name": "att"}, "at.loss.name", "did you mean 'at'?"),
    "loss without weight": (METHODS, {"at/loss/weight": 0.0}, "at.loss.weight", "greater than 0"),
    "loss of an x that is left out": (METHODS, {"at_kd_tlcutmix/strong/replaces_x": True}, "at_kd_tlcutmix", "sees x"),
    "base view unknown": ("params.yaml", {"base_view": "crop"}, "base_view", "'none', 'flip' or 'flip+crop'"),
    "unknown key of strong": (
        METHODS,
        {"kd_tlcutmix/strong/viewx": 1},
        "kd_tlcutmix.strong.viewx",
        "did you mean 'view'?",
    ),
    "method name with a slash": (METHODS, {"kd": GONE, "kd@4": {"ce": 0.1, "kl": 0.9}}, "'kd@4'", "lower-case"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_that_names_file_and_field(root, name):
    file, changes, field, word = BAD[name]
    edit(root, file, changes)
    lines = refused(root)
    assert len(lines) == 1, lines
    assert lines[0].startswith((f"{root / file}: {field}:", f"{root / file}: {field} ", f"{root / file}: {field}."))
    assert word in lines[0]


CONTENT = {
    "broken": (b"epochs: [1, 2\nlr: }", "not YAML"),
    "a list": (b"- epochs\n- lr\n", "list"),
    "a word": (b"epochs\n", "str"),
    "empty": (b"", "NoneType"),
    "latin-1": ("dataset: caf\u00e9\n".encode("latin-1"), ""),
    "a null byte": (b"dataset: a\x00b\n", ""),
    "a key twice": (b"a: 1\na: 2\n", "duplicate key"),
    "a tab": (b"a:\n\tb: 1\n", "not YAML"),
    "a python object": (b"a: !!python/object/apply:os.getcwd []\n", "not YAML"),
    "two documents": (b"a: 1\n---\nb: 2\n", "not YAML"),
}


@pytest.mark.parametrize("file", ["params.yaml", DATASETS, MODELS, METHODS, PAIRS])
@pytest.mark.parametrize("name", CONTENT)
def test_a_file_that_is_no_mapping_is_one_line(root, file, name):
    content, word = CONTENT[name]
    (root / file).write_bytes(content)
    lines = refused(root)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{root / file}: ")
    assert word in lines[0]


@pytest.mark.parametrize("file", ["params.yaml", DATASETS, MODELS, METHODS, PAIRS])
def test_a_missing_file_is_one_line(root, file):
    (root / file).unlink()
    (line,) = refused(root)
    assert line.startswith(f"{root / file}: no such file")


def test_several_mistakes_of_a_file_give_several_lines(root):
    edit(root, "params.yaml", {"epochs": "240", "lr": 0, "compute/device": "gpu", "epocs": 1})
    lines = refused(root)
    assert all(line.startswith(f"{root / 'params.yaml'}: ") for line in lines)
    assert sorted(line.split(": ")[1] for line in lines) == ["compute.device", "epochs", "epocs", "lr"]


def test_several_unknown_names_give_several_lines(root):
    edit(root, "params.yaml", {"dataset": "a", "teacher": "b", "student": "c", "methods": ["d", "kd", "e"]})
    fields = [line.split(": ")[1] for line in refused(root)]
    assert fields == ["dataset", "teacher", "student", "methods.0", "methods.2"]


def test_mistakes_of_several_entries_give_several_lines(root):
    edit(root, MODELS, {"resnet8/family": "x", "resnet20/lr": -1})
    assert sorted(line.split(": ")[1] for line in refused(root)) == ["resnet20.lr", "resnet8.family"]


def test_mistakes_of_several_files_give_several_lines(root):
    edit(root, MODELS, {"resnet8/family": "x"})
    edit(root, METHODS, {"kd/tau": 0})
    edit(root, "params.yaml", {"epochs": -1})
    named = {tuple(line.removeprefix(f"{root}/").split(": ")[:2]) for line in refused(root)}
    assert named == {(MODELS, "resnet8.family"), (METHODS, "kd.tau"), ("params.yaml", "epochs")}


def test_all_three_of_the_teacher_s_weights_are_taken(root):
    assert with_params(root, teacher_weights=FULL).params.teacher_weights.file == "w.pt"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_are_taken(root, device):
    edit(root, "params.yaml", {"compute/device": device})
    assert config.load(root).params.compute.device == device


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["kd", "resnet8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


QUOTED = config.PaperAccuracy(teacher_top1=98.0, student_top1=97.0)


def one_of_each():
    """What params.yaml names, without the other recipes: quick to read."""
    experiment = config.load(ROOT)
    params = experiment.params.model_copy(update={"methods": ("kd",), "teacher": "resnet8"})
    entries = ((DATASETS, experiment.datasets, "digits"), (MODELS, experiment.models, "resnet8"))
    pairs = {"pair": config.Pair(teacher="resnet8", student="resnet8", datasets={"digits": QUOTED})}
    entries += ((METHODS, experiment.methods, "kd"), (PAIRS, pairs, "pair"))
    small = {file: {name: found[name].model_dump(mode="json")} for file, found, name in entries}
    own = {"recipes/user_folder.yaml": experiment.user_folder.model_dump(mode="json")}
    return {"params.yaml": params.model_dump(mode="json"), **small, **own}


SMALL = one_of_each()


@given(
    key=st.sampled_from(["epochs", "methods", "compute", "teacher_weights", "seeds", "dataset", "new"]), value=VALUES
)
@settings(max_examples=40, deadline=None)
def test_any_value_is_either_taken_or_refused_in_lines(key, value):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "recipes").mkdir()
        for file, content in SMALL.items():
            changes = {key: value} if file == "params.yaml" else {}
            (root / file).write_text(json.dumps({**content, **changes}), "utf-8")  # JSON is YAML
        try:
            config.load(root)
        except UserError as error:
            assert all(line.startswith(f"{root / 'params.yaml'}: ") for line in str(error).split("\n"))


def test_params_are_written_as_dvc_writes_them():
    """So that `dvc exp run -S` changes the lines that it must, and no other."""
    text = (ROOT / "params.yaml").read_text()
    yaml, written = YAML(), io.StringIO()
    yaml.dump(yaml.load(text), written)
    assert written.getvalue() == text
