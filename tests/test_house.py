"""The rules of the house: what may import what, how long things may be, and what must be said about them."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest
from paths import ROOT

from kdflow import config

SOURCES = sorted((ROOT / "kdflow").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
TREES = {file: ast.parse(file.read_text()) for file in SOURCES + STAGES}

# From the bottom up: a package imports from lower rows only, wherever in the file it does so. Packages of one row do
# not import each other. "" is kdflow itself: its version.
LAYERS = (
    {""},
    {"core"},
    {"config"},
    {"data", "models"},
    {"methods"},
    {"training"},
    {"paper", "teachers", "launch"},
    {"export", "report", "sweep"},
    {"pipeline"},
    {"cli", "stages"},
)
# Modules that every command reads settings and records with: they import neither torch nor DVC nor Prefect.
LIGHT = (
    "cli",
    "config",
    "core.download",
    "core.errors",
    "core.files",
    "core.progress",
    "export.card",
    "export.locate",
    "launch.parallel_runs",
    "launch.torchrun",
    "paper",
    "paper.cells",
    "paper.drift",
    "pipeline",
    "pipeline.distill",
    "pipeline.evaluate",
    "pipeline.logits",
    "pipeline.one_command",
    "pipeline.paper",
    "pipeline.prepare",
    "pipeline.teacher",
    "pipeline.train",
    "report",
    "sweep.dvc_graph",
    "sweep.processes",
    "teachers",
    "training.job",
    "training.record",
)


def module(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module(file) for file in TREES}


def imports(tree):
    """The modules of kdflow that a file imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            if node.module in NAMES:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from full & NAMES
                if full - NAMES:
                    yield node.module


GRAPH = {module(file): set(imports(tree)) for file, tree in TREES.items()}


def part(name):
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "kdflow" else package


def test_the_graph_of_imports_is_seen():
    assert "kdflow.config" in GRAPH["kdflow.training.record"]
    assert "kdflow.training.run" in GRAPH["kdflow.launch.parallel_runs"], "inside a function"
    assert "kdflow.pipeline.distill" in GRAPH["stages.distill"]


def test_every_part_has_its_layer():
    assert sorted({part(name) for name in GRAPH}) == sorted(name for layer in LAYERS for name in layer)


def test_imports_point_down():
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    upward = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if part(name) != part(other) and height[part(other)] >= height[part(name)]
    ]
    assert upward == []


def test_imports_have_no_cycle():
    done = set()

    def follow(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in GRAPH[name]:
                follow(other, [*path, name])
            done.add(name)

    for name in GRAPH:
        follow(name, [])
    assert done == set(GRAPH)


def test_what_reads_settings_and_records_never_imports_torch():
    script = "import sys\n" + "".join(f"import kdflow.{name}\n" for name in LIGHT)
    script += "print(sorted({'torch', 'prefect', 'dvc', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("file", STAGES, ids=lambda file: file.name)
def test_a_stage_is_a_page(file):
    assert len(file.read_text().splitlines()) <= 30


def functions():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module(file)}.{node.name}", node


def test_no_function_is_longer_than_60_lines():
    long = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}


def public(tree, prefix):
    """Public classes and functions, and the public methods of public classes; nothing inside functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}.{node.name}")


@pytest.mark.parametrize("file", TREES, ids=module)
def test_all_that_is_public_is_described(file):
    tree = TREES[file]
    assert ast.get_docstring(tree), "the module"
    assert [name for name, node in public(tree, module(file)) if not ast.get_docstring(node)] == []


def test_every_function_is_annotated():
    bare = []
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare += [f"{name}: {a.arg}" for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
        bare += [f"{name}: return"] if node.returns is None else []
    assert bare == []


PROMISED = {
    "data": {"read": ["spec", "folder", "downloads"]},
    "models": {"build": ["num_classes", "image_size"]},
    "views": {"draw": ["sizes", "image_size", "generator"], "apply": ["x", "draw"]},
    "labels": {"loss": ["student", "strong", "labels", "teacher_logits_x", "tau"]},
    "picks": {"score": ["pool"]},
    "losses": {"build": ["student", "teacher", "labels"]},
}

FLAGS = {"views": {"MIXES_IMAGES"}, "labels": {"NEEDS_X", "NEEDS_STRONG"}, "losses": {"NEEDS_FEATURES"}}


@pytest.mark.parametrize(("package", "name"), [(p, name) for p in FLAGS for name in config.choices(p)])
def test_every_choice_sets_the_flags_of_its_package(package, name):
    folder = f"kdflow.{config.FOLDERS[package].replace('/', '.')}"
    choice = importlib.import_module(f"{folder}.{name}")
    for flag in FLAGS[package]:
        assert getattr(choice, flag) in (True, False)
        assert f"`{flag}`" in importlib.import_module(folder).__doc__


@pytest.mark.parametrize(("package", "name"), [(p, name) for p in PROMISED for name in config.choices(p)])
def test_what_a_recipe_may_name_keeps_its_package_s_promise(package, name):
    found = importlib.import_module(f"kdflow.{config.FOLDERS[package].replace('/', '.')}.{name}")
    for function, expected in PROMISED[package].items():
        parameters = inspect.signature(getattr(found, function)).parameters.values()
        assert [p.name.strip("_") for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == expected
        contract = config.FOLDERS[package].removesuffix("/readers").removesuffix("/families").replace("/", ".")
        assert f"`{function}(" in importlib.import_module(f"kdflow.{contract}").__doc__
