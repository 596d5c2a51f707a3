"""A teacher in onnxruntime: its rounding errors, its threads, and the cases in which it is refused."""

import importlib.util
import inspect

import pytest
import torch
from small import DATA, METHODS, batches_of, run_of, step_of, teacher_for

from kdflow.config import Precision
from kdflow.core.errors import UserError
from kdflow.models.onnx_runtime import onnxruntime_forward
from kdflow.models.precision import check_supported
from kdflow.training.step import new_student

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def _losses(**precision: object) -> list[float]:
    run = run_of(METHODS["kd_tlcutmix_pick"]).model_copy(update={"precision": Precision(**precision)})
    step = step_of(run, new_student(run, DATA.train.labels), teacher_for(run.method))
    return [step(batch, 0.001).loss.item() for batch in batches_of(run)]  # the last batch is smaller


@needs_onnx
def test_onnxruntime_gives_torchs_logits_to_rounding_with_as_many_threads():
    teacher, x = teacher_for(METHODS["kd"]), batches_of(run_of(METHODS["kd"]))[0].x
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        forward = onnxruntime_forward("larger", teacher, 8)
    finally:
        torch.set_num_threads(before)
    session = inspect.getclosurevars(inspect.unwrap(forward)).nonlocals["session"]
    assert session.get_session_options().intra_op_num_threads == 3
    for rows in (8, 3):
        torch.testing.assert_close(forward(x[:rows]), teacher(x[:rows]), rtol=1e-5, atol=1e-5)


@needs_onnx
def test_steps_with_onnxruntime_are_the_same_to_rounding():
    assert _losses(teacher_runtime="onnxruntime") == pytest.approx(_losses(), rel=1e-5)


def test_what_onnxruntime_cannot_do_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"precision\.teacher_runtime: not possible with a loss on features"):
        check_supported(Precision(teacher_runtime="onnxruntime"), with_features=True)
    with pytest.raises(ValueError, match=r"teacher_runtime: onnxruntime computes in float32"):
        Precision(teacher_runtime="onnxruntime", teacher="bfloat16")
    teacher = teacher_for(METHODS["kd"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxruntime: not installed; pip install 'kdflow\[onnx\]'"):
        onnxruntime_forward("larger", teacher, 8)
    with pytest.raises(UserError, match="runs on the CPU only, and the device is meta"):
        onnxruntime_forward("larger", teacher.to("meta"), 8)


def test_the_default_runtime_is_in_no_settings_and_no_hash():
    assert "teacher_runtime" not in run_of(METHODS["kd"]).model_dump_json()
