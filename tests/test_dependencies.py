"""dvc.yaml: the code that a stage depends on is the code that can change its output, all of it and nothing else."""

import functools
from fnmatch import fnmatch

import pytest
from closure import Sources
from paths import ROOT
from ruamel.yaml import YAML

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


@functools.cache  # not at the top: every worker of pytest-xdist imports this file
def sources() -> Sources:
    return Sources(ROOT, "kdflow", "stages")


@functools.cache
def reached(stage: str) -> set[str]:
    return {sources().path(module) for module in sources().reached(f"stages.{stage}")}


# Code that stages reach and that cannot change an output, with the reason.
EXEMPT = {
    "kdflow/data/map_style.py": "datasets of Python programs; stages read prepared ones",
    "kdflow/__init__.py": "the version, which a record mentions",
    "kdflow/core/*": "files, messages, progress and processes; downloads are checked against a hash",
    "kdflow/config/base.py": "types and checks of settings: a value stays as it is written, or is refused",
    "kdflow/config/load.py": "reads the settings: a value stays as it is written, or is refused",
    "kdflow/config/user_code.py": "finds and imports a user's code, whose hash is in the settings",
    "kdflow/launch/*": "starts and ends the processes in which kdflow/training computes",
    "kdflow/pipeline/__init__.py": "names of files and folders",
    "kdflow/pipeline/train.py": "passes jobs on to kdflow/launch",
    "kdflow/teachers/*": "finds initial weights; their names and hashes are in the settings",
    "kdflow/training/device.py": "the device is no reason to compute again, as all of params.yaml's `compute`",
}
EXEMPT_IN = {
    "prepare": {
        "kdflow/config/experiment.py": "selects the entry of the dataset in params.yaml",
        "kdflow/config/initial.py": "no run is started yet",
        "kdflow/config/method.py": "no method is used yet",
        "kdflow/config/run.py": "no run is started yet",
    },
    "logits": {"kdflow/training/record.py": "the name of the folder from which an interrupted attempt is resumed"},
    "teacher": {
        "kdflow/methods/labels/*": "the teacher is trained with cross-entropy on the labels",
        "kdflow/methods/losses/*": "the same",
        "kdflow/methods/picks/*": "the same",
        "kdflow/methods/views/[!_]*": "the same; the package itself is the base view",
    },
    "evaluate": {"kdflow/config/*": "the settings of a run are read from its log"},
    "report": {"kdflow/config/*": "settings are compared with those of the records, which are not changed"},
}


def exempt(stage: str) -> list[str]:
    return [*EXEMPT, *EXEMPT_IN.get(stage, {})]


def needed(stage: str) -> set[str]:
    """Return the files that can change a stage's output."""
    return {file for file in reached(stage) if not any(fnmatch(file, pattern) for pattern in exempt(stage))}


def code_dependencies(stage: str) -> list[str]:
    """Return the files and folders of code that a stage depends on."""
    entry = STAGES[stage].get("do", STAGES[stage])
    return [path for path in entry["deps"] if path.startswith(("kdflow/", "stages/"))]


def files_of(path: str) -> set[str]:
    """Return the modules that a dependency covers, except those that have no definitions, such as empty packages."""
    covered = {sources().path(name): module for name, module in sources().modules.items()}
    return {file for file, module in covered.items() if module.definitions and (f"{file}/").startswith(f"{path}/")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_code_that_can_change_its_output(stage):
    covered = set().union(*(files_of(path) for path in code_dependencies(stage)))
    assert sorted(needed(stage) - covered) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_other_code(stage):
    """A folder is a dependency where most of its modules are needed, else the modules are listed."""
    for path in code_dependencies(stage):
        files = files_of(path)
        assert 2 * len(files & needed(stage)) > len(files), path


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_script(stage):
    command = STAGES[stage].get("do", STAGES[stage])["cmd"]
    assert command.removesuffix(" ${item}") == f"exec python -m stages.{stage}"


def test_exemptions_are_needed():
    for pattern in EXEMPT:
        assert any(fnmatch(file, pattern) for stage in STAGES for file in reached(stage)), pattern
    for stage, patterns in EXEMPT_IN.items():
        for pattern in patterns:
            assert any(fnmatch(file, pattern) for file in reached(stage)), (stage, pattern)


# --- the computation of what is reached ----------------------------------------------------------------------


FILES = {
    "stages/one.py": "from kdflow.work import work\n\ndef main():\n    work('x')\n",
    "kdflow/__init__.py": "",
    "kdflow/work.py": """
from __future__ import annotations
import importlib
from kdflow import shared
from kdflow.lib import tool
from kdflow.types import Kind

SIZE = 3

def work(name: Kind):
    from kdflow.inner import deep as deeper
    importlib.import_module(f"kdflow.parts.{name}").build(deeper(tool(SIZE)), shared.value)

def other():
    from kdflow.unused import thing
    return thing()
""",
    "kdflow/lib/__init__.py": "from kdflow.lib.tools import tool\nfrom kdflow.lib.idle import idle\n",
    "kdflow/lib/tools.py": "def tool(x):\n    return x\n",
    "kdflow/lib/idle.py": "def idle():\n    return 0\n",
    "kdflow/inner.py": "import kdflow.unused\n\ndef deep(x):\n    return Helper().run(x)\n\nclass Helper:\n"
    "    def run(self, x):\n        from kdflow.method_import import late\n        return late(x)\n",
    "kdflow/method_import.py": "def late(x):\n    return x\n",
    "kdflow/shared.py": "from kdflow.on_import import register\n\nvalue = 1\nregister()\n",
    "kdflow/on_import.py": "def register():\n    pass\n",
    "kdflow/types.py": "class Kind:\n    pass\n",
    "kdflow/unused.py": "def thing():\n    pass\n",
    "kdflow/parts/__init__.py": "",
    "kdflow/parts/a.py": "from kdflow.part_helper import help_a\n\ndef build(x, y):\n    return help_a(x)\n",
    "kdflow/parts/b.py": "def build(x, y):\n    return x\n",
    "kdflow/part_helper.py": "def help_a(x):\n    return x\n",
}


def test_what_a_script_reaches(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = Sources(tmp_path, "kdflow", "stages").reached("stages.one")
    assert modules == {
        "stages.one",
        "kdflow.work",
        "kdflow.types",  # named by an annotation
        "kdflow.inner",  # imported in a function under another name
        "kdflow.method_import",  # imported in a method
        "kdflow.lib.tools",  # imported from a package that imports it
        "kdflow.shared",
        "kdflow.on_import",  # called when a module that is reached is imported
        "kdflow.parts.a",  # may be imported by name
        "kdflow.parts.b",
        "kdflow.part_helper",
    }
