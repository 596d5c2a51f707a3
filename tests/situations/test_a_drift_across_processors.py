"""The loss of the first step is the same on processors with and without AVX, and a loss changed by 2 % is drift."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from kdflow.paper import drift
from kdflow.training.record import mean_std

CELL = "digits-resnet20-resnet8-kd"
OLD_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OPENBLAS_CORETYPE": "Nehalem",
}
# Trains the cell of paper/micro for one epoch, with the distillation term times argv[1], and prints the loss of the
# first step of each seed.
SCRIPT = f"""
import json, sys
from pathlib import Path
from kdflow.methods import losses
from kdflow.paper import load_paper
from kdflow.pipeline.prepare import prepare_dataset
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.run import run_job

kl, factor, folder = losses.kl_per_sample, float(sys.argv[1]), Path(sys.argv[2])
losses.kl_per_sample = lambda teacher, student, tau: factor * kl(teacher, student, tau)
paper = load_paper(Path("paper/micro"))
cell = paper.cells["{CELL}"]
experiment = paper.experiment(cell)
prepare_dataset(experiment, folder / "digits.h5", folder)
from kdflow.pipeline.teacher import make_teacher
make_teacher(paper.teacher_experiment("digits-resnet20"), folder / "digits.h5", folder / "teacher", folder)
values = []
for seed in experiment.params.seeds:
    run = experiment.student_run(cell.method, seed)
    run = run.model_copy(update={{"training": run.training.model_copy(update={{"epochs": 1}})}})
    job = Job(
        name="seed", run=run, budget=record.make_budget(run, experiment.dataset), dataset=folder / "digits.h5",
        teacher=folder / "teacher/model.safetensors", views_store=None, weights=folder / f"{{seed}}.safetensors",
        log=folder / f"{{seed}}.json", work_dir=folder, compute=experiment.params.compute,
    )
    run_job(job, lambda message: None)
    values.append(record.read_record(job.log, record.RunLog).curve[0].first_step_loss)
print(json.dumps(values))
"""


def first_step_losses(folder: Path, factor: float, environment: dict[str, str]) -> list[float]:
    command = [sys.executable, "-c", SCRIPT, str(factor), str(folder)]
    env = {**os.environ, **environment}
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, OLD_PROCESSOR], ids=["this processor", "without AVX"])
def test_drift_passes_unchanged_code_and_finds_a_distillation_loss_changed_by_two_percent(tmp_path, environment):
    baseline = drift.read_baseline(ROOT / "paper/micro/baseline.json")
    before = baseline.cells[CELL].metrics["first_step_loss"]
    for factor, expected in ((1.0, "ok"), (1.02, "drift")):
        now = mean_std(first_step_losses(tmp_path / str(factor), factor, environment))
        allowed = drift.tolerance(baseline.tolerances["first_step_loss"], before, now)
        assert ("ok" if abs(now.mean - before.mean) <= allowed else "drift") == expected, (factor, before, now)


def test_the_baseline_holds_the_loss_of_the_first_step_tightly_whatever_the_teacher():
    baseline = drift.read_baseline(ROOT / "paper/micro/baseline.json")
    tolerance = baseline.tolerances["first_step_loss"]
    assert tolerance.relative and tolerance.floor <= 1e-5 and tolerance.k == 0
    assert len({cell.teacher_sha256 for cell in baseline.cells.values()} - {None}) == 1
