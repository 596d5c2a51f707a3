"""Runs on several processes under the real torchrun: results, refused settings and failures."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import HELPERS, ROOT
from processes import children, descendants
from tracked import read

from kdflow import config, data
from kdflow.core.errors import FAILURE_FILE, UserError, read_failure
from kdflow.launch import torchrun
from kdflow.training import record
from kdflow.training.job import Job

# It runs as a stage does: script.py FOLDER NAME,NAME,...
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_torchrun import jobs
from kdflow.core.script import run_script
from kdflow.launch import torchrun

def main(folder, names):
    torchrun.run_with_torchrun("ce", jobs(Path(folder), names.split(",")), 2)
    print("all done")

if __name__ == "__main__":
    run_script(main)
"""


LOG = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()


def jobs(folder: Path, names: list[str], method: str = "ce", **compute: object) -> list[Job]:
    """Return runs on 20 digits; "long" never ends, "wild" has no finite loss, "gone" has no dataset."""
    experiment = config.load(ROOT)
    made = []
    for name in names:
        run = experiment.student_run(method, 0)
        change = {"epochs": 10**6 if name == "long" else 1, "eval_every": 10**6, "batch_size": 17}
        training = run.training.model_copy(update=change | ({"lr": 1e20} if name == "wild" else {}))
        run = run.model_copy(update={"train_images": 20, "image_size": 8, "training": training})
        made.append(
            Job(
                name=name,
                run=run,
                budget=record.make_budget(run, experiment.dataset),
                dataset=folder / ("gone.h5" if name == "gone" else "digits.h5"),
                teacher=None,
                views_store=None,
                compute=experiment.params.compute.model_copy(
                    update={"device": "cpu", "processes_per_run": 2, "log": LOG, **compute}
                ),
                weights=folder / f"{name}.safetensors",
                log=folder / f"{name}.json",
                work_dir=folder / "scratch" / name,
            )
        )
    return made


@pytest.mark.parametrize(
    ("method", "compute", "processes", "message"),
    [
        (
            "ce",
            {},
            4,
            r"ce: the last batch of an epoch \(20 images, batches of 17\) trains on 3 only, .* at most 3, .*",
        ),
        ("dkd", {}, 4, r"ce: .* trains on 3 only, too few for 4 processes; .*"),
        ("kd_tlcutmix_pick", {}, 4, r"ce: .* trains on 3 only, too few for 4 processes; .*"),
        ("ce", {"device": "cuda:1"}, 2, r"ce: compute.device cuda:1 is a single device; use auto \(a GPU .*\) or cpu"),
    ],
)
def test_settings_that_several_processes_cannot_train_are_refused(tmp_path, method, compute, processes, message):
    with pytest.raises(UserError) as caught:
        torchrun.run_with_torchrun("ce", jobs(tmp_path, ["seed 0"], method, **compute), processes)
    assert re.fullmatch("params.yaml: compute.processes_per_run: " + message, str(caught.value))


def test_teacher_logits_from_a_store_are_refused(tmp_path):
    (job,) = jobs(tmp_path, ["seed 0"])
    job = job.model_copy(update={"run": job.run.model_copy(update={"teacher_logits": "replay"})})
    with pytest.raises(
        UserError, match="ce: teacher_logits: replay works with one process only; use teacher_logits: online, or 1"
    ):
        torchrun.run_with_torchrun("ce", [job], 2)


@pytest.fixture
def folder(tmp_path):
    spec = config.load(ROOT).datasets["digits"].data
    spec = spec.model_copy(update={"train_images": 20, "test_images": 1777, "image_size": 8})
    data.prepare("digits", spec, None, tmp_path, tmp_path / "digits.h5")
    (tmp_path / "script.py").write_text(SCRIPT.format(paths=[str(HELPERS), str(ROOT / "tests/launch")]))
    return tmp_path


def start(folder: Path, *names: str, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, *by, folder / "script.py", folder, ",".join(names)], subprocess.PIPE
    env = {**os.environ, FAILURE_FILE: str(folder / "failure.json")}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("by", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")])
def test_after_a_loss_that_is_not_finite_all_processes_end_with_one_line(folder, by):
    process = start(folder, "seed 0", "wild", "never", by=by)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert out.count("ce seed 0  100 %") == 1 and "never" not in out and "all done" not in out
    lines = re.findall(r".*ce wild: wild: the loss is nan at step 2 \(epoch 1\), .*", err)
    if by:
        assert lines, err  # torchrun's report has it
    else:
        assert err.splitlines() == lines and len(lines) == 1, err
        assert not read_failure(folder / "failure.json").retryable, "the same settings fail again"
    assert json.loads((folder / "seed 0.json").read_text())["machine"]["processes_per_run"] == 2
    assert not list((folder / "scratch/wild").rglob("checkpoint*"))
    if LOG:
        assert len(list(folder.glob("scratch/seed 0/log/tensorboard/*/*"))) == 1, "only one process writes"
        (written,) = read("tensorboard", folder / "scratch/seed 0/log").values()
        assert len(written.curves["train/loss"]) == 1 and written.final


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes to kill in Linux's /proc")
@pytest.mark.parametrize("victim", ["a process", "the parent", "ctrl-c"])
def test_all_processes_end_together(folder, victim):
    by = ("-c", "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])")
    process = start(folder, "long", by=by if victim == "the parent" else ())
    wait_for(lambda: list(folder.glob("scratch/long/runs/*/checkpoint.safetensors")) or process.poll() is not None)
    pids = [process.pid, *descendants(process.pid)]
    ranks = [pid for pid in pids if not children(pid)]
    assert len(ranks) == 2 and process.poll() is None
    if victim == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(ranks[1] if victim == "a process" else process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    wait_for(lambda: not any(alive(pid) for pid in pids), 10)
    code, beginning = {
        "a process": (1, "error: ce: process 1: ended by signal SIGKILL"),
        "the parent": (-9, "interrupted: "),  # the agent ends by SIGTERM and ends the processes
        "ctrl-c": (130, "interrupted: "),
    }[victim]
    assert process.returncode == code
    if victim == "a process":
        assert read_failure(folder / "failure.json").retryable
    (line,) = filter(None, err.splitlines())
    assert line.startswith(beginning)
