"""A stage that fails under the real DVC, and whether it is run again."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from kdflow.core.errors import FAILURE_FILE, UserError, exit_on_user_error, read_failure
from kdflow.sweep import dvc_graph, tasks
from kdflow.sweep.processes import NO_TELEMETRY

STAGE = """
import os, signal
from kdflow.core.errors import UserError
from kdflow.core.script import run_script

def main():
    {body}

run_script(main)
"""
OLD_WORDS = "params.yaml: a run that was ended by hand is gone"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty DVC repository as the current folder; the tasks run without a flow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tasks, "get_run_logger", lambda: logging.getLogger("stage"))
    environment = {**os.environ, **NO_TELEMETRY}
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], env=environment, check=True)
    return tmp_path


def fail(repository: Path, body: str) -> tasks.StageError:
    (repository / "stage.py").write_text(STAGE.format(body=body))
    (repository / "dvc.yaml").write_text("stages: {one: {cmd: exec python stage.py}}")
    with pytest.raises(tasks.StageError) as caught:
        asyncio.run(tasks.run_stage.fn("one", dvc_graph.command(Path(), "repro", "-s", "one"), {}))
    return caught.value


@pytest.mark.parametrize(
    ("body", "message", "retryable"),
    [
        ("raise UserError('any wording', retryable=True)", "one: any wording", True),
        (f"raise UserError({OLD_WORDS!r})", f"one: {OLD_WORDS}", False),
        ("raise OSError(28, '', 'data/a.h5')", "one: data/a.h5: No space left on device", False),
    ],
)
def test_the_flag_of_an_error_decides_about_a_retry_whatever_its_words(repository, body, message, retryable):
    error = fail(repository, body)
    assert (str(error), error.retryable) == (message, retryable)


@pytest.mark.parametrize("body", ["os.kill(os.getpid(), signal.SIGKILL)", "raise ZeroDivisionError('was no error')"])
def test_a_killed_stage_and_a_defect_are_retried(repository, body):
    error = fail(repository, body)
    assert error.retryable
    assert str(error).startswith("one: ERROR: failed to reproduce 'one'")


def test_a_failure_file_keeps_the_lines_and_the_flag(tmp_path, monkeypatch):
    file = tmp_path / "failure.json"
    monkeypatch.setenv(FAILURE_FILE, str(file))
    assert read_failure(file) is None
    with pytest.raises(SystemExit), exit_on_user_error():
        raise UserError("a: b\nc: \x1b[2J", retryable=True)
    failure = read_failure(file)
    assert (str(failure), failure.retryable) == ("a: b; c: \\x1b[2J", True)
    file.write_text(file.read_text()[:20])
    assert read_failure(file) is None, "its writer was killed while writing"


def test_only_retryable_errors_of_stages_are_retried():
    class State:
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def aresult(self, *, raise_on_failure: bool) -> Exception:
            return self.error

    def retried(error: Exception) -> bool:
        return asyncio.run(tasks._is_retryable(None, None, State(error)))

    assert retried(tasks.StageError("one", "reason", retryable=True))
    assert not retried(tasks.StageError("one", OLD_WORDS, retryable=False))
    assert not retried(TimeoutError(OLD_WORDS))
    assert tasks.run_stage.retry_condition_fn is tasks._is_retryable
