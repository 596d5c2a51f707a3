"""Checks training steps on the meta device and as one compiled graph. `python whole_steps.py METHOD...` prints JSON.

`METHOD=meta` leaves out the compilation, which takes ten times as long.

It runs in a separate process: torch's compiler does not work with the shape checks of the tests. The models are as
small as all losses allow, since the time to trace a step grows with their layers.
"""

import json
import sys
from dataclasses import replace

import torch
from small import DATA, LAYERS, METHODS, batches_of, run_of, same, state_of, step_of
from torch import nn

from kdflow.config import Architecture, Model, Precision, RunSettings
from kdflow.models import create_model
from kdflow.training import graph, step
from kdflow.training.batches import Batch
from kdflow.training.step import new_student

META = torch.device("meta")
STUDENT, TEACHER = (
    Model(family="whole_steps:Small", options={"width": width}, features=LAYERS["features"], head="fc")
    for width in (16, 32)
)
FOLLOW_EPOCH = ("ctkd_tlcutmix", "dkd_tlcutmix")


class Small(nn.Module):
    """Two convolutions, batch norm and a classifier; it names as many layers as other models."""

    def __init__(self, num_classes: int, image_size: int, *, width: int) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.layer1, self.layer2 = nn.ReLU(), nn.AvgPool2d(2)
        self.layer3, self.fc = nn.Conv2d(width, width, 3, 2, 1), nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.norm(self.conv1(x))))
        return self.fc(self.layer3(x).mean((2, 3)))


def run_and_teacher(name: str, kind: str, epochs: int) -> tuple[RunSettings, nn.Module | None]:
    run = run_of(METHODS[name], epochs=epochs)
    teacher = Architecture(name="larger", model=TEACHER) if run.teacher else None
    run = run.model_copy(update={"precision": Precision(step=kind), "model": STUDENT, "teacher": teacher})
    if teacher is None:
        return run, None
    torch.manual_seed(9)
    model = create_model("larger", TEACHER, 4, 8)
    with torch.no_grad():
        model.fc.weight.mul_(8)
    return run, model.eval().requires_grad_(False)


def check_meta(name: str) -> None:
    """Take a step on the meta device, which has shapes without values: reading one on the host raises an exception."""
    run, teacher = run_and_teacher(name, "eager", 1)
    learner, batch = new_student(run, DATA.train.labels), batches_of(run)[0]
    plan = batch.plan
    strong = [{key: value.to(META) for key, value in draw.items()} for draw in plan.strong]
    plan = replace(plan, index=plan.index.to(META), noise=plan.noise.to(META), strong=strong)
    taking = step_of(run, learner.to(META), None if teacher is None else teacher.to(META))
    assert taking(Batch(plan, batch.x.to(META), batch.labels.to(META)), 0.01).loss.device == META


def compiled_equals_eager(name: str) -> bool:
    """Return whether compiled steps, of which the last one is a short batch, give the eager steps' digits.

    A loss that follows the epoch takes ten epochs: torch stops compiling a graph that changes with each one.
    """
    epochs, found = 10 if name in FOLLOW_EPOCH else 1, []
    for kind in ("eager", "compile"):
        run, teacher = run_and_teacher(name, kind, epochs)
        taking = step_of(run, new_student(run, DATA.train.labels), teacher)
        batches = [batch for epoch in range(epochs) for batch in batches_of(run, epoch)]
        losses = [taking(batch, 0.001).loss.item() for batch in batches]
        counts = None if taking.teacher is None else taking.teacher.take_counts()
        found.append((losses, counts, state_of(taking.learner)))
    return found[0][:2] == found[1][:2] and same(found[0][2], found[1][2])


def result(argument: str) -> str:
    name, _, only = argument.partition("=")
    torch._dynamo.reset()
    try:
        check_meta(name)
        return "whole" if only or compiled_equals_eager(name) else "other digits"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    inductor = graph.compiled
    step.compiled = lambda gradients: inductor(gradients, backend="eager")  # which compiles nothing
    print(json.dumps({name: result(name) for name in sys.argv[1:]}))
