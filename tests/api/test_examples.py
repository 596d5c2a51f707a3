"""The examples run."""

import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = pytest.mark.slow


def run(arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["module_and_dataset", "training_loop"])
def test_an_example_trains_a_student_that_is_better_than_chance(tmp_path, name):
    student = re.search(r"student (\S+) %", run([EXAMPLES / f"{name}.py"], tmp_path))
    assert 20 < float(student[1]) <= 100


def test_the_cells_of_the_notebook_run_in_order(tmp_path):
    """The cells are run as one script: Jupyter would be a large dependency of the tests."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    output = run(["-c", "\n".join([*code, "print(result.accuracy.top1, teacher is not student)"])], tmp_path)
    top1, different = output.split()
    assert 10 < float(top1) <= 100 and different == "True"
