"""Runs in parallel, as real processes: what is printed when they finish, fail or are killed."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from processes import children, descendants
from tracked import read

from kdflow.core.errors import FAILURE_FILE, read_failure

# A program like the stages: script.py FOLDER MAX_PARALLEL NAME,NAME,... NAME,...
# Each list of names is a group of runs. The groups run one after the other, from the same fork server.
# A run whose name starts with "gone" has no dataset, one whose name starts with "long" never ends.
SCRIPT = """
import sys
from pathlib import Path
from kdflow import config
from kdflow.core.errors import exit_on_user_error
from kdflow.launch.parallel_runs import run_parallel
from kdflow.training import record
from kdflow.training.job import Job

def main(folder, max_parallel, names):
    experiment = config.load(Path({root!r}))
    compute = experiment.params.compute.model_copy(update={{"device": "cpu", "log": {log!r}}})
    jobs = []
    for seed, name in enumerate(names):
        run = experiment.student_run("ce", seed)
        epochs = 10**6 if name.startswith("long") else 1
        training = run.training.model_copy(update={{"epochs": epochs, "eval_every": 100000}})
        run = run.model_copy(update={{"train_images": 20, "image_size": 8, "training": training}})
        dataset = folder / ("gone.h5" if name.startswith("gone") else "digits.h5")
        budget = record.make_budget(run, experiment.dataset)
        jobs.append(Job(name=name, run=run, budget=budget, dataset=dataset, teacher=None,
                        views_store=None, compute=compute,
                        weights=folder / f"{{name}}.safetensors", log=folder / f"{{name}}.json",
                        work_dir=folder / name))
    run_parallel("ce", jobs, max_parallel)
    print("all done")

if __name__ == "__main__":
    with exit_on_user_error():
        for names in sys.argv[3:]:
            main(Path(sys.argv[1]), int(sys.argv[2]), names.split(","))
"""


LOG = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """20 of the handwritten digits for training, at their original size."""
    from kdflow import config, data

    spec = config.load(ROOT).datasets["digits"].data
    spec = spec.model_copy(update={"train_images": 20, "test_images": 1777, "image_size": 8})
    out = tmp_path_factory.mktemp("data") / "digits.h5"
    data.prepare("digits", spec, None, out.parent, out)
    return out


@pytest.fixture
def start(tmp_path, dataset):
    """A function that starts the program; all its processes are killed at the end of the test."""
    (tmp_path / "digits.h5").symlink_to(dataset)
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT), log=LOG))
    started = []

    def begin(*groups, max_parallel=2, env=None, by=()):
        command = [sys.executable, *by, tmp_path / "script.py", tmp_path, str(max_parallel), *groups]
        pipe = subprocess.PIPE
        env = {**os.environ, **(env or {})}
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        for pid in [process.pid, *descendants(process.pid)] if process.poll() is None else []:
            kill(pid)
        process.communicate()


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not true within {seconds} s")


def training(process, scratch):
    """Wait until only one run is left and has a checkpoint; return its pid in a list.

    The runs are children of the fork server, which is a child of the program.
    """

    def last_run():
        assert process.poll() is None, process.communicate()
        runs = [pid for child in children(process.pid) for pid in children(child)]
        return runs if len(runs) == 1 and any(scratch.glob("runs/*/checkpoint.safetensors")) else None

    return wait_for(last_run)


def test_runs_that_finish_fail_or_are_killed(start, tmp_path):
    """Two runs finish; in the next group two fail at once, one finishes and one is killed."""
    failure_file = tmp_path / "failure.json"
    process = start("seed 0,seed 1", "gone 0,seed 2,long 3,gone 4", env={FAILURE_FILE: str(failure_file)})
    (run,) = training(process, tmp_path / "long 3")
    for name in ("seed 0", "seed 1"):
        assert (tmp_path / f"{name}.json").is_file()
        assert (tmp_path / f"{name}.safetensors").is_file()
        assert list((tmp_path / name / "runs").iterdir()) == [], "scratch of a group without failures is removed"
    kill(run)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    gone = f"{tmp_path / 'gone.h5'}: no such file; `dvc repro prepare` makes it"
    lines = ["ce gone 0, gone 4: " + gone, "ce long 3: ended by signal SIGKILL"]  # one reason, one line
    assert err.startswith("error: ")
    assert sorted(line.removeprefix("error: ") for line in err.splitlines()) == lines, "in any order"
    assert read_failure(failure_file).retryable, "one of them was killed"
    assert out.count("all done") == 1, "the first group"
    for name in ("seed 0", "seed 1", "seed 2"):
        assert any(line.startswith(f"ce {name}  100 %") for line in out.splitlines())
    assert (tmp_path / "seed 2.json").is_file(), "it finished although others failed"
    assert any((tmp_path / "long 3/runs").glob("*/checkpoint.safetensors")), "what was trained is kept"
    if LOG:
        runs = {name: read("tensorboard", tmp_path / name / "log") for name in ("seed 0", "long 3")}
        ((name, finished),), ((_, killed),) = (run.items() for run in runs.values())
        assert name.startswith("ce-seed-0-") and finished.final and not killed.final
        assert len(finished.curves["train/loss"]) == 1 and len(killed.curves["train/loss"]) >= 1


@pytest.mark.slow
def test_the_runs_end_with_the_process_that_started_them(start, tmp_path):
    """Ctrl-C, SIGTERM and SIGKILL; in parallel, because each program imports torch first."""
    codes = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGKILL: -9}
    processes = {sent: start(f"long {sent.name}") for sent in codes}
    for sent, process in processes.items():
        training(process, tmp_path / f"long {sent.name}")
        pids = descendants(process.pid)
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # a terminal's Ctrl-C reaches the whole group
        else:
            process.send_signal(sent)
        assert process.wait(30) == codes[sent]
        wait_for(lambda pids=pids: not any(alive(pid) for pid in pids), 20)
        err = process.communicate()[1]
        assert len(err.splitlines()) == (0 if sent == signal.SIGKILL else 1), err
        assert sent == signal.SIGKILL or err.startswith("interrupted: ")


@pytest.mark.slow
def test_a_command_continues_when_its_shell_has_ended(start, tmp_path):
    """This is how nohup works. Only stages end with their parent."""
    shell = start(
        "seed 0,seed 1", by=("-c", "import subprocess, sys; subprocess.Popen([sys.executable, *sys.argv[1:]])")
    )
    assert shell.wait(20) == 0
    out, err = shell.communicate(timeout=60)  # of the command
    assert "all done" in out and not err
    assert (tmp_path / "seed 1.json").is_file()


def test_a_run_that_cannot_import_torch_fails(start, tmp_path):
    """The program itself never imports torch."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so: cannot open shared object')\n")
    process = start("seed 0", env={"PYTHONPATH": str(tmp_path / "broken")})
    out, err = process.communicate(timeout=60)
    assert not (tmp_path / "seed 0.json").exists()
    assert process.returncode == 1, out + err
    assert "all done" not in out
    assert "ce seed 0: " in err
