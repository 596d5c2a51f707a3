"""The copy of the project that runs, where there are several."""

import os
import shutil
import subprocess
import sys

import pytest
from paths import ROOT

from kdflow.core.errors import UserError
from kdflow.core.source import PROJECT, check_source, same_source

SCRIPT = """
from kdflow.launch.parallel_runs import in_fresh_process
from kdflow.training import record

if __name__ == "__main__":
    print(record.code_sha256(), in_fresh_process(record.code_sha256))
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the code that differs in a comment; the environment's kdflow is another one."""
    for name in ("kdflow", "stages"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "copy/kdflow/training/record.py").open("a") as file:
        file.write("# changed\n")
    return tmp_path / "copy"


def run(*arguments, cwd):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_project_is_that_of_this_test():
    assert PROJECT.resolve() == ROOT


def test_a_module_of_a_copy_and_its_processes_run_the_copy(copy, tmp_path):
    (copy / "stages/hashes.py").write_text(SCRIPT)
    done = run("-m", "stages.hashes", cwd=copy)
    sha256, of_process = done.stdout.split()
    assert sha256 == of_process, done.stderr
    assert (
        sha256 != run("-c", "from kdflow.training import record; print(record.code_sha256())", cwd=ROOT).stdout.strip()
    )


def test_processes_run_the_code_of_their_parent_in_the_folder_of_another_copy(copy, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)  # a script's folder is first on its import path, not the current one
    expected = run("-c", "from kdflow.training import record; print(record.code_sha256())", cwd=ROOT).stdout.strip()
    done = run(tmp_path / "script.py", cwd=copy)
    assert done.stdout.split() == [expected, expected], done.stderr


def test_a_script_of_another_copy_is_refused(copy):
    done = run("stages/prepare.py", cwd=copy)  # imports the kdflow of the environment
    assert done.returncode == 1
    expected = f"error: stages/prepare.py: kdflow is imported from another folder, {PROJECT}; "
    assert done.stderr == f"{expected}run `python -m stages.prepare` in {copy.resolve()}\n"


def test_a_script_of_this_project_is_accepted(tmp_path):
    check_source(ROOT / "stages/prepare.py")
    (tmp_path / "stages").mkdir()
    check_source(tmp_path / "stages/prepare.py")  # no other copy of kdflow is beside it
    (tmp_path / "kdflow").mkdir()
    with pytest.raises(UserError, match="is imported from another folder"):
        check_source(tmp_path / "stages/prepare.py")


@pytest.mark.parametrize("before", [None, "/some/folder"])
def test_the_environment_is_restored(monkeypatch, before):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setenv("PYTHONPATH", before) if before else monkeypatch.delenv("PYTHONPATH", raising=False)
    with same_source():
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(PROJECT), *filter(None, [before])]
    assert os.environ.get("PYTHONPATH") == before
    assert "PYTHONSAFEPATH" not in os.environ
