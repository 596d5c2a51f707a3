"""Settings files with values of any kind: either settings that can run, or one line for each mistake."""

import copy
import datetime
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from papers import PARAMS, TABLES
from paths import ROOT
from ruamel.yaml import YAML
from settings_files import DATASETS, METHODS, MODELS, PAIRS, copy_settings, edit

from kdflow import config, paper, teachers
from kdflow.config import Method, Model, Params, Recipes, read_settings
from kdflow.core.errors import UserError
from kdflow.models import create_model, create_model_on_meta
from kdflow.paper import drift
from kdflow.paper.budget import PaperBudget
from kdflow.paper.paper import KINDS
from kdflow.teachers import TeacherEntry
from kdflow.training.schedule import learning_rate

TEACHERS, USER_FOLDER = "recipes/teachers.yaml", "recipes/user_folder.yaml"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("2020-13-45", "a value cannot be read: month must be in 1..12; quote it if it is text"),
        ("!!bool maybe", "a value cannot be read"),
        ("!!binary x", "not YAML"),
        ("9" * 5000, "a value cannot be read: Exceeds the limit"),
        ("0x" + "9" * 5000, "got a int that is too long to print"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("[" * 300 + "]" * 300, "..."),
        ("&a [*a]", "got [[...]]"),
        ("x" * 5000, "xxx..."),
        ('1.0\n"a\\nb": 1', "a\\nb: unknown key"),
        ("1.0\nloss: {name: sp, weight: 1.0, options: &a {a: *a}}", "loss.options.a"),
    ],
)
def test_content_that_cannot_be_read_is_one_mistake(tmp_path, value, words):
    (tmp_path / "a.yaml").write_text(f"kl: 0.0\nce: {value}\n")
    mistakes = []
    assert read_settings(tmp_path / "a.yaml", Method, mistakes) is None
    (line,) = mistakes
    assert words in line
    assert "\n" not in line and len(line) < len(str(tmp_path)) + 300


@pytest.mark.parametrize(
    "kind",
    [Params, Recipes, PaperBudget, *KINDS.values(), TeacherEntry, drift.Tolerance],
    ids=lambda kind: kind.__name__,
)
def test_every_number_has_a_lower_and_an_upper_bound(kind):
    unbounded = []

    def look(schema, where):
        if isinstance(schema, dict):
            lower, upper = {"minimum", "exclusiveMinimum"} & set(schema), {"maximum", "exclusiveMaximum"} & set(schema)
            if schema.get("type") in ("integer", "number") and not (lower and upper):
                unbounded.append(where)
            for key, value in schema.items():
                look(value, f"{where}/{key}")
        elif isinstance(schema, list):
            for index, value in enumerate(schema):
                look(value, f"{where}/{index}")

    look(kind.model_json_schema(), "")
    assert not unbounded


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_folder": "~nosuchuser/x"}, "data_folder: ~nosuchuser/x: no such user, or no home folder"),
        ({"dataset": {"folder": "~nosuchuser/x", "image_size": 32}}, "dataset.folder: ~nosuchuser/x: no such user"),
        ({"teacher_weights/file": "~nosuchuser/x"}, "teacher_weights.file: ~nosuchuser/x: no such user"),
        ({"data_folder": "a\0b"}, "data_folder: a path cannot have a null character"),
        ({"lr": 1e300}, "lr: input should be less than or equal to 10000, got 1e+300"),
        ({"epochs": 10**30}, "epochs: input should be less than or equal to 1000000, got 1000"),
        ({"compute/threads": 2**40}, "compute.threads: input should be less than or equal to 1024"),
        ({"compute/device": "cuda:999999999999"}, "compute.device: string should match pattern"),
        ({"dataset": {"folder": "a", "image_size": 10**9}}, "image_size: input should be less than or equal to 4096"),
        ({"train_images": 3}, "train_images: 3 is less than the number of classes, 10"),
    ],
)
def test_settings_beyond_their_bounds_are_one_line(tmp_path, changes, words):
    edit(copy_settings(tmp_path), "params.yaml", changes)
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    assert "\n" not in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (DATASETS, {"digits/data/image_size": 10**9}, "digits.data.image_size: input should be less than or equal"),
        (DATASETS, {"digits/base_view/crop": 17}, "base_view.crop: 17 is more than data.image_size, 16"),
        (MODELS, {"resnet8/options/depth": 10**6}, "resnet8.options: numbers must be from -100,000 to 100,000"),
        (MODELS, {"resnet8/options/widths": [16, [10**30]]}, "resnet8.options: numbers must be from"),
        (
            METHODS,
            {"sp/loss/options": {"a": {"b": float("nan")}}},
            "sp.loss.options.a.dict.b.float: input should",
        ),
        (METHODS, {"kd_tlcutmix_pick/strong/pick": {"criterion": "kl", "pool": 10**6}}, "pool: input should be less"),
    ],
)
def test_recipes_beyond_their_bounds_are_one_line(tmp_path, file, changes, words):
    edit(copy_settings(tmp_path), file, changes)
    with pytest.raises(UserError) as caught:
        config.load_recipes(tmp_path)
    assert "\n" not in str(caught.value) and words in str(caught.value)


def test_a_baseline_without_a_tolerance_is_refused(tmp_path):
    baseline = json.loads((ROOT / "paper/micro/baseline.json").read_text())
    del baseline["tolerances"]["loss"]
    (tmp_path / "baseline.json").write_text(json.dumps(baseline))
    with pytest.raises(UserError, match="tolerances: loss not given"):
        drift.read_baseline(tmp_path / "baseline.json")


@pytest.mark.parametrize("options", [{"depth": 8, "widths": [16, 16, 16, 90000]}, {"depth": 8, "widths": [100000] * 4}])
def test_a_model_larger_than_the_memory_is_refused(options):
    with pytest.raises(UserError, match=r"model x: its weights have .* GB, the memory .* GB"):
        create_model_on_meta("x", Model(family="resnet", options=options), 10, 32)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("resnet", {"depth": "8", "widths": [16] * 4}),
        ("resnet", {"depth": 8, "widths": {"a": 16}}),
        ("wrn", {"depth": 40, "width": 1e-3}),
        ("wrn", {"depth": [], "width": None}),
        ("vgg", {"convolutions": [1, 1, 1, 1, True]}),
        ("mobilenetv2", {"expansion": 6, "width": 99999.0}),
        ("shufflenetv2", {"widths": [100000] * 4}),
        ("torchvision", {"name": ["resnet18"]}),
        ("torchvision", {"name": "resnet18", "norm_layer": 3}),
        ("torchvision", {"name": "resnet18", "width_per_group": -1}),
        ("torchvision", {"name": "resnet50", "groups": 0}),
    ],
)
def test_wrong_options_of_a_model_are_one_line(family, options):
    recipe = Model(family=family, options=options)
    for create in (create_model_on_meta, create_model):
        try:
            create("x", recipe, 10, 32)
        except UserError as error:
            assert str(error).startswith("model x: ") and "\n" not in str(error)
            return  # a model that the first refuses for its size is not created


# --- any value at any field ----------------------------------------------------------------------------------


def _yaml(content: str | Path) -> dict:
    return YAML(typ="safe", pure=True).load(content)


def _first(file: str, *names: str) -> dict:
    """Return some entries of a file of recipes: the others take longer to read."""
    content = _yaml(ROOT / file)
    return {name: content[name] for name in names}


FILES = {
    "params.yaml": {**_yaml(ROOT / "params.yaml"), "methods": ["ce", "dkd", "kd_pick"], "lr": 0.1, "epochs": 2},
    DATASETS: _first(DATASETS, "digits"),
    MODELS: _first(MODELS, "resnet8", "resnet14", "resnet20"),
    METHODS: _first(METHODS, "ce", "ce_smooth", "kd", "dkd", "kd_tlcutmix_pick")
    | {
        "kd_pick": {
            "ce": 0.1,
            "kl": 0.9,
            "strong": {"view": "mixup", "pick": {"criterion": "kl", "pool": 3, "keep": 0.5}},
        }
    },
    PAIRS: {
        f"resnet20_to_{student}": {
            "teacher": "resnet20",
            "student": student,
            "datasets": {"digits": {"teacher_top1": 98.0, "student_top1": 97.0}},
        }
        for student in ("resnet8", "resnet14")
    },
    USER_FOLDER: _yaml(ROOT / USER_FOLDER),
    TEACHERS: {
        "known": {"dataset": "digits", "architecture": "resnet20", "urls": ["https://host/file"], "sha256": "0" * 64}
        | {"size": 5, "top1": 90.0, "licence": "MIT", "source": "a page"}
    },
    "paper/tables.yaml": _yaml(TABLES)
    | {
        "figure5": {
            "kind": "disagreement_figure",
            "caption": "",
            "dataset": "digits",
            "pair": "resnet20_to_resnet8",
            "view": "mixup",
        }
    },
    "paper/params.yaml": _yaml(PARAMS)
    | {
        "data_folders": {"digits": "a"},
        "teacher_weights": {"digits-resnet20": {"file": "a", "sha256": "0" * 64, "top1": 9.0}},
    },
    "baseline.json": json.loads((ROOT / "paper/micro/baseline.json").read_text()),
}
FOLDER = {
    "folder": "photos",
    "image_size": 32,
    "side": 36,
    "test_part": "val",
    "val_share": 0.2,
    "split_seed": 0,
    "skip_broken": False,
    "flip": True,
}


def places(content: object, path: tuple = ()) -> list[tuple]:
    """Return the paths of all values in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def put(content: object, path: tuple, value: object) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


PLACES = [(file, path) for file, content in FILES.items() for path in places(content)]
PLACES += [(file, (*path[:-1], "new")) for file, path in PLACES if isinstance(path[-1], str)]
PLACES += [("params.yaml", ("dataset", key)) for key in (*FOLDER, "new")]
ODD = [
    "",
    "~nosuchuser/x",
    "~",
    "a\0b",
    "a\nb",
    "..",
    "kd",
    "resnet8",
    "digits",
    "\x1b[2J",
    "x" * 300,
    "\u0663",
    "cuda:99",
]
ODD += [10**30, -(10**30), 2**40, 1e300, -1e300, 1e-300, 10**400, float("nan"), float("inf"), 0, 1, -1, 0.5]
ODD += [datetime.date(2020, 1, 1), b"bytes", {1: 2}, {None: None}, {"a\nb": 1}, {"kind": []}, [[[[]]]], set(), [None]]
VALUES = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def use(root: Path, file: str) -> None:
    """Read all files that a command with `file` reads, and resolve the settings of every run."""
    if file == "baseline.json":
        baseline = drift.read_baseline(root / file)
        for cell in baseline.cells.values():
            for metric, value in cell.metrics.items():
                drift.tolerance(baseline.tolerances[metric], value, value)
        return
    experiments = []
    if not file.startswith("paper/"):
        experiments = [config.load(root)]
        teachers.load(root)
    if file not in ("params.yaml", TEACHERS, USER_FOLDER):
        loaded = paper.load_paper(Path("paper"), root)
        experiments += [loaded.experiment(cell) for cell in loaded.cells.values()]
        experiments += [loaded.teacher_experiment(name) for name in loaded.teachers]
        assert 0 <= paper.total_epochs(loaded) < 1e15
    for experiment in experiments:
        assert experiment.params.dataset_name
        if not isinstance(experiment.params.dataset, str):
            continue
        runs = [experiment.student_run(method, 0) for method in experiment.params.methods]
        for run in (experiment.teacher_run(), *runs):
            assert run.sha256 and learning_rate(run.training, 0, 1) > 0
            assert run.classes <= run.train_images


def written(value: object) -> object:
    """Return what JSON has of a value."""
    if isinstance(value, dict):
        return {str(key): written(inner) for key, inner in value.items()}
    if isinstance(value, list | set):
        return [written(inner) for inner in value]
    if isinstance(value, int) and abs(value) > 10**4000:
        return 0  # JSON's parser refuses it too
    return value if isinstance(value, str | int | float | None) else str(value)


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2))
@example([(("baseline.json", ("cells", "digits-resnet8-ce", "metrics")), {"a\nb": 1})])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_is_either_taken_or_refused_in_lines(tmp_path, monkeypatch, changes):
    contents = copy.deepcopy(FILES)
    for (file, path), value in changes:
        if file == "params.yaml" and path[0] == "dataset" and len(path) > 1:
            contents[file]["dataset"] = dict(FOLDER)
        with suppress(TypeError, KeyError, IndexError):  # the first change may have replaced the place of the second
            put(contents[file], path, written(value) if file == "baseline.json" else value)
    module = sys.modules[config.load.__module__]
    monkeypatch.setattr(module, "_read_yaml", lambda file, *_, **__: contents[file.relative_to(tmp_path).as_posix()])
    monkeypatch.setattr(module, "PROJECT_FILES", tmp_path)  # the folder of the built-in recipes
    (tmp_path / "params.yaml").touch()
    (tmp_path / "baseline.json").write_text(json.dumps(contents["baseline.json"]))
    for file in {file for (file, _), _ in changes}:
        try:
            use(tmp_path, file)
        except UserError as error:
            assert str(error)
            for line in str(error).split("\n"):
                assert line.startswith((f"{tmp_path}/", "paper"))
                assert len(line) < len(str(tmp_path)) + 600
