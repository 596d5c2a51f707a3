"""Runs that are started by a Python program without `if __name__ == "__main__"`, or from stdin."""

import os
import subprocess
import sys

import pytest
from paths import ROOT
from tree import make_tree

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

FRESH = """
from kdflow.core.files import sha256
from kdflow.launch.parallel_runs import in_fresh_process
from pathlib import Path
print("starts")
print(in_fresh_process(sha256, Path("x")))
"""

DISTILL = """
from pathlib import Path
from kdflow.config import Compute, UserFolder
from kdflow.pipeline import distill_options, one_command
compute = Compute(device="cpu", threads=1, max_parallel_runs=None, processes_per_run=1, replay_gb=1.0,
                  loader_workers=0)
options = distill_options.DistillOptions(data=UserFolder(folder="images", image_size=32), teacher="resnet14",
    student="resnet8", method="kd", out=Path("out"), epochs=1, teacher_epochs=None, teacher_model=None, seeds=1,
    compare=False, compute=compute)
one_command.distill(options, Path({root!r}))
print("all done")
"""


def run(program, folder, from_stdin):
    (folder / "program.py").write_text(program)
    command = [sys.executable] if from_stdin else [sys.executable, "program.py"]
    return subprocess.run(
        command,
        input=program if from_stdin else "",
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=ENV,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize("from_stdin", [False, True])
def test_a_new_process_does_not_run_the_program_again(tmp_path, from_stdin):
    (tmp_path / "x").write_bytes(b"")
    done = run(FRESH, tmp_path, from_stdin)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert (first, second[:8]) == ("starts", "e3b0c442")


@pytest.mark.slow
@pytest.mark.parametrize("from_stdin", [False, True])
def test_distill_works_without_a_guard(tmp_path, from_stdin):
    make_tree(tmp_path / "images")
    done = run(DISTILL.format(root=str(ROOT)), tmp_path, from_stdin)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all done") == 1
