"""The command line in real processes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import KDFLOW, fails_in_one_line, run
from factories import DEMO, EXPERIMENT, make_record, make_teacher
from paths import ROOT

from kdflow import __version__
from kdflow.training import record


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def change(root, old, new):
    text = (root / "params.yaml").read_text()
    assert old in text
    (root / "params.yaml").write_text(text.replace(old, new))


def test_check_prints_a_summary_of_valid_settings(root):
    done = run("check", cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "settings are valid: digits, resnet20 -> resnet8, 4 methods x 3 seeds\n"


def test_check_takes_another_folder(root):
    assert run("check", "--root", root, cwd="/").returncode == 0


def test_check_prints_a_line_for_each_mistake(root):
    change(root, "\nepochs:\nbatch_size:", "\nepochs: '3'\nbatch_size: 0")
    done = run("check", cwd=root)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: params.yaml: epochs: ")
    assert "params.yaml: batch_size: " in second


def test_check_outside_of_a_project_is_one_line(tmp_path):
    fails_in_one_line(run("check", cwd=tmp_path), "no such file; run from the project's folder")


def test_the_installed_command_shows_its_help():
    done = run("--help", command=[Path(sys.executable).with_name("kdflow")])
    assert (done.returncode, done.stderr) == (0, "")
    assert all(word in done.stdout for word in ("check", "table", "dvc repro"))


def test_an_unknown_option_is_reported_with_the_whole_command():
    fails_in_one_line(run("logits", "estimate", "--foo"), "error: kdflow logits estimate: No such option: --foo")


def test_the_help_is_shown_without_a_command():
    done = run(command=[sys.executable, "-m", "kdflow"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_the_version():
    assert run("--version").stdout == f"kdflow {__version__}\n"


def test_the_shell_completes_commands_and_options(monkeypatch):
    monkeypatch.setenv("_KDFLOW_COMPLETE", "complete_bash")
    for words, completed in (("kdflow exp", ["export"]), ("kdflow init --he", ["--help"])):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert run(command=[Path(sys.executable).with_name("kdflow")]).stdout.split() == completed


def test_init_prints_what_to_do_next(tmp_path):
    assert run("init", "my demo", cwd=tmp_path).stdout.endswith("next: cd 'my demo' && dvc repro && kdflow table\n")
    assert "settings are valid" in run("check", cwd=tmp_path / "my demo").stdout
    fails_in_one_line(run("init", "my demo", cwd=tmp_path), "my demo: is not empty")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--bogus"], "--bogus"),
        (["chek"], "chek"),
        (["check", "--rot", "x"], "--rot"),
        (["check", "more"], "more"),
        (["check", "--root"], "--root"),
    ],
)
def test_bad_arguments_are_one_line(root, arguments, word):
    fails_in_one_line(run(*arguments, cwd=root), word)


@pytest.mark.parametrize("arguments", [[], ["ce", "kd"]])
@pytest.mark.parametrize("stage", ["distill", "evaluate"])
def test_a_stage_without_its_method_is_one_line(root, stage, arguments):
    fails_in_one_line(run(*arguments, cwd=root, command=[sys.executable, ROOT / "stages" / f"{stage}.py"]))


def test_a_stage_with_an_unknown_method_is_one_line(root):
    command = [sys.executable, ROOT / "stages/distill.py"]
    fails_in_one_line(run("kdd", cwd=root, command=command), "'kdd'", "did you mean 'kd'")


def test_table_without_records_is_one_line(root):
    fails_in_one_line(run("table", cwd=root), "data/teacher/record.json: no such record; `dvc repro` writes it")


def test_table_shows_every_method_and_the_path_of_the_figure(root):
    for i, method in enumerate(EXPERIMENT.params.methods):
        for seed in EXPERIMENT.params.seeds:
            made = make_record(seed, 80.0 + i, method=method, budget=DEMO)
            record.write_record(root / f"data/records/{method}/seed{seed}.json", made)
    record.write_record(root / "data/teacher/record.json", make_teacher())
    done = run("table", cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(method in done.stdout for method in EXPERIMENT.params.methods)
    assert "83.00 (0.00)" in done.stdout
    assert "+2.00 (0.00)" in done.stdout
    assert "Not a full run: demo dataset." in done.stdout
    assert "data/report/accuracy.svg" in done.stdout


def test_ctrl_c_is_one_line_and_exit_code_130(root):
    (root / "recipes/models.yaml").unlink()
    os.mkfifo(root / "recipes/models.yaml")
    process = subprocess.Popen([*KDFLOW, "check"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with (root / "recipes/models.yaml").open("wb"):  # opens when the command reads, which then waits for content
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert (process.returncode, out) == (130, ""), err
    assert [line[:13] for line in err.splitlines() if line] == ["interrupted: "]
