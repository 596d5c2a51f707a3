"""A step as one graph: it needs no host value, torch compiles it whole, and a CUDA graph gives the same weights."""

import json
import subprocess
import sys

import pytest
import torch
from paths import HELPERS
from small import CPU, DATA, METHODS, batches_of, run_of, step_of, teacher_for

from kdflow.config import Precision
from kdflow.core.errors import UserError
from kdflow.data import ImageSet
from kdflow.training.graph import check_graph
from kdflow.training.loop import _optimizer
from kdflow.training.step import new_student

QUICK = ["crd_kd_tlcutmix_pick"]  # strong views, a pick, and a loss on features that draws


def _structure(value: object) -> object:
    """Return settings of a method without their numbers, except for whether they are positive."""
    if isinstance(value, dict):
        return {key: _structure(item) for key, item in value.items()}
    return value > 0 if isinstance(value, float) or type(value) is int else value


def _terms(name: str) -> frozenset[str]:
    """Return the terms of a method's loss; two methods with the same ones differ in numbers only."""
    settings = METHODS[name].model_dump(exclude={"tau": True, "strong": {"weight"}})
    return frozenset(f"{key}: {_structure(value)}" for key, value in settings.items() if value)


def _largest() -> list[str]:
    """Return the methods whose terms are not all terms of another method."""
    one_of = {_terms(name): name for name in reversed(METHODS)}
    return [name for terms, name in one_of.items() if not any(terms < others for others in one_of)]


SLOW = [name for name in _largest() if name not in QUICK]
LONG = [name for name in METHODS if name not in QUICK + SLOW]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param(SLOW + [f"{name}=meta" for name in LONG], id="largest", marks=pytest.mark.slow),
        pytest.param(LONG, id="others", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
def test_a_step_is_one_graph(names):
    """A step reads no value on the host, and torch compiles it whole: its digits are those of an eager one."""
    done = subprocess.run(
        [sys.executable, HELPERS / "whole_steps.py", *names],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(HELPERS)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == dict.fromkeys(names, "whole")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["kd_tlcutmix_pick", "crd_kd", "dkd"])
def test_a_cuda_graph_is_close_to_eager_steps(name, optimizer):
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    cuda, found = torch.device("cuda"), []
    for kind in ("eager", "cuda_graph"):
        run = run_of(METHODS[name], optimizer=optimizer, batch_size=2)
        run = run.model_copy(update={"precision": Precision(step=kind)})
        train = ImageSet(DATA.train.images.to(cuda), DATA.train.labels.to(cuda))
        learner, teacher = new_student(run, train.labels), teacher_for(run.method).to(cuda)
        taking = step_of(run, learner, teacher)
        taking.optimizer = _optimizer(run, learner)
        batches = [batch for epoch in range(2) for batch in batches_of(run, epoch, train)]
        losses = [taking(batch, 0.001 / (i + 1)).loss.item() for i, batch in enumerate(batches)]
        found.append((losses, {key: value.cpu() for key, value in learner.state_dict().items()}))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    for key, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], value, rtol=1e-3, atol=1e-3, msg=key)


def test_what_a_graph_cannot_do_is_refused():
    for kind, changes, processes, message in (
        ("cuda_graph", {}, 1, "cuda_graph needs a CUDA device, and the device is cpu"),
        ("compile", {}, 2, "compile needs compute.processes_per_run: 1"),
        ("compile", {"teacher_logits": "replay"}, 1, "compile needs teacher_logits: online"),
    ):
        run = run_of(METHODS["kd"]).model_copy(update={"precision": Precision(step=kind), **changes})
        with pytest.raises(UserError, match=f"params.yaml: precision.step: {message}"):
            check_graph(run, CPU, processes)
    check_graph(run_of(METHODS["kd"]), CPU, 2)
    for other in ({"compile": "default"}, {"teacher_runtime": "onnxruntime"}):
        with pytest.raises(ValueError, match=r"step: compile needs precision\.compile: none"):
            Precision(step="compile", **other)
