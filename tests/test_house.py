"""Rules of the code: its layout, the direction of imports, lengths, docstrings and annotations."""

import ast
import functools
import importlib
import inspect
import subprocess
import sys

import pytest
from paths import ROOT

from kdflow import config

SOURCES = sorted((ROOT / "kdflow").rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
FILES = SOURCES + STAGES

# A package imports packages of the rows above it only, at the top of a file and in a function. Packages of one row do
# not import each other. "" is kdflow/__init__.py, which has the version.
LAYERS = (
    {""},
    {"core"},
    {"config"},
    {"data", "models"},
    {"methods"},
    {"training"},
    {"api", "paper", "teachers", "launch"},
    {"export", "report", "sweep"},
    {"pipeline"},
    {"cli", "stages"},
    {"__main__"},
)
# Modules that only need settings and records: they import neither torch nor DVC nor Prefect, which take seconds.
LIGHT = (
    "cli",
    "config",
    "core.download",
    "core.errors",
    "core.files",
    "core.machine",
    "core.parent",
    "core.progress",
    "core.script",
    "core.source",
    "core.trackers",
    "export.card",
    "export.locate",
    "launch.parallel_runs",
    "launch.torchrun",
    "launch.tracking",
    "paper",
    "paper.cells",
    "paper.drift",
    "pipeline",
    "pipeline.distill",
    "pipeline.evaluate",
    "pipeline.logits",
    "pipeline.one_command",
    "pipeline.package",
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


NAMES = {module(file) for file in FILES}


@functools.cache  # not at the top: every worker of pytest-xdist imports this file
def trees():
    return {file: ast.parse(file.read_text()) for file in FILES}


def imports(tree):
    """Yield the modules of kdflow that a file imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module in NAMES:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                yield from full & NAMES
                if full - NAMES:
                    yield node.module


@functools.cache
def graph():
    return {module(file): set(imports(tree)) for file, tree in trees().items()}


def part(name):
    """Return the package below kdflow that a module is in."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "kdflow" else package


def test_imports_are_found():
    assert "kdflow.config" in graph()["kdflow.training.record"]
    assert "kdflow.training.run" in graph()["kdflow.launch.parallel_runs"], "in a function"
    assert "kdflow.pipeline.distill" in graph()["stages.distill"]


def test_kdflow_has_packages_and_at_most_three_modules():
    folder = ROOT / "kdflow"
    packages = [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert all((path / "__init__.py").is_file() for path in packages)
    assert len(list(folder.glob("*.py"))) <= 3


def test_every_package_is_in_a_row():
    assert sorted({part(name) for name in graph()}) == sorted(name for layer in LAYERS for name in layer)


def test_packages_import_rows_above_them():
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if part(name) != part(other) and height[part(other)] >= height[part(name)]
    ]
    assert wrong == []


def test_imports_have_no_cycle():
    done = set()

    def follow(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph()[name]:
                follow(other, [*path, name])
            done.add(name)

    for name in graph():
        follow(name, [])
    assert done == set(graph())


def test_modules_that_need_settings_and_records_only_do_not_import_torch():
    script = "import sys\n" + "".join(f"import kdflow.{name}\n" for name in LIGHT)
    script += "print(sorted({'torch', 'prefect', 'dvc', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("file", STAGES, ids=lambda file: file.name)
def test_a_stage_has_at_most_30_lines(file):
    assert len(file.read_text().splitlines()) <= 30


@pytest.mark.parametrize("folder", ["benchmarks", "kdflow", "stages", "tests"])
def test_no_file_has_more_than_350_lines(folder):
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 350} == {}


def functions():
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module(file)}.{node.name}", node


def test_no_function_has_more_than_60_lines():
    long = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}


def public(tree, prefix):
    """Yield public classes and functions, and public methods of public classes; nothing inside functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}.{node.name}")


@pytest.mark.parametrize("file", FILES, ids=module)
def test_everything_public_has_a_docstring(file):
    tree = trees()[file]
    assert ast.get_docstring(tree), "the module"
    assert [name for name, node in public(tree, module(file)) if not ast.get_docstring(node)] == []


def test_every_function_is_annotated():
    bare = []
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
        bare += [f"{name}: {a.arg}" for a in arguments if a and a.annotation is None and a.arg not in ("self", "cls")]
        bare += [f"{name}: return"] if node.returns is None else []
    assert bare == []


# The functions that every choice of a kind must have, with their parameters.
CONTRACTS = {
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


@pytest.mark.parametrize(("package", "name"), [(p, name) for p in CONTRACTS for name in config.choices(p)])
def test_every_choice_has_the_functions_of_its_package(package, name):
    choice = importlib.import_module(f"kdflow.{config.FOLDERS[package].replace('/', '.')}.{name}")
    for function, expected in CONTRACTS[package].items():
        parameters = inspect.signature(getattr(choice, function)).parameters.values()
        assert [p.name.strip("_") for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == expected
        documented_in = config.FOLDERS[package].removesuffix("/readers").removesuffix("/families").replace("/", ".")
        assert f"`{function}(" in importlib.import_module(f"kdflow.{documented_in}").__doc__
