"""A partial store of all views is damaged between two attempts to fill it."""

from pathlib import Path

import numpy as np
import pytest
from runs import key_of
from small import DATA, METHODS, run_of, teacher_for

from kdflow.training import record
from kdflow.training.run import _Inputs
from kdflow.training.teacher_logits import all_views

RUN, TEACHER = run_of(METHODS["kd"]), teacher_for(METHODS["kd"])


class StopError(Exception):
    """Raised as an interruption would be."""


def fill(path: Path, stop: int | None = None) -> list[int]:
    reported = []

    def on_progress(done: int) -> None:
        reported.append(done)
        if done == stop:
            raise StopError

    all_views.fill(path, TEACHER, DATA.train, RUN, "float32", key_of(RUN), on_progress)
    return reported


def damage(path: Path, kind: str) -> None:
    content, done = path.read_bytes(), path.with_suffix(".done")
    if kind == "truncated":
        path.write_bytes(content[:5000])
    elif kind == "zeroed":
        path.write_bytes(content[:5000] + bytes(len(content) - 5000))
    elif kind == "removed":
        path.unlink()
    elif kind == "header":
        path.write_bytes(bytes(100) + content[100:])
    else:
        done.write_text({"empty notes": "", "other notes": "96 2048"}[kind])


@pytest.mark.parametrize("kind", ["truncated", "zeroed", "removed", "header", "empty notes", "other notes"])
def test_a_damaged_partial_store_is_written_from_the_start(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(all_views, "BLOCK", 5)
    whole, path = tmp_path / "whole.h5", tmp_path / "views.h5"
    fill(whole)
    with pytest.raises(StopError):
        fill(path, stop=10)
    damage(path, kind)
    assert fill(path)[0] == 0
    read = [all_views.read_views(file, RUN, "float32", key_of(RUN)) for file in (path, whole)]
    assert np.array_equal(*read)


def test_a_checkpoint_of_another_torch_is_not_resumed():
    machine = record.machine_info("cpu", 1, 0, 1)
    upgraded = machine.model_copy(update={"versions": {**machine.versions, "torch": "99.0"}})
    code = record.code_version()
    keys = {_Inputs("data", None, None, code, one).key(RUN) for one in (machine, upgraded)}
    assert len(keys) == 2
