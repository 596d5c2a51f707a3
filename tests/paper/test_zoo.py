"""zoo/: it has every loss with and without TLCutMix, and all of its cells can be trained."""

import math
from pathlib import Path

import pytest
import torch
from paths import ROOT

from kdflow import config
from kdflow.data import ImageSet
from kdflow.models import create_model
from kdflow.paper import load_paper
from kdflow.training.batches import InMemoryBatches
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.run import teacher_extractor
from kdflow.training.step import Step, new_student
from kdflow.training.teacher_logits import Online

ZOO = load_paper(Path("zoo"), ROOT)
METHODS = {cell.method: cell for cell in ZOO.cells.values()}


def test_every_loss_has_a_row_with_and_without_views():
    methods = {name: ZOO.recipes.methods[name] for name in METHODS}
    for views in (False, True):
        rows = [method for method in methods.values() if (method.strong is not None) == views]
        assert {method.loss.name for method in rows if method.loss} == set(config.choices("losses"))
        assert any(method.kl and not method.loss for method in rows), "KD alone"
    strong = [method.strong for method in methods.values() if method.strong]
    assert {(one.view, one.label, one.pick) for one in strong} == {("cutmix", "teacher", None)}
    assert len(ZOO.teachers) == 1
    assert {ZOO.experiment(cell).params.seeds for cell in ZOO.cells.values()} == {(0, 1, 2)}


def test_budget_and_teacher_are_those_of_the_evidence():
    budget, evidence = ZOO.budget, load_paper(Path("evidence"), ROOT).budget
    assert budget.model_copy(update={"seeds": evidence.seeds}) == evidence


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_cell_can_be_built(method):
    run = ZOO.experiment(METHODS[method]).student_run(method, 0)
    assert (run.train_images, run.training.epochs) == (5_000, 30)
    new_student(run, torch.arange(5_000) % 100)


def test_one_cell_learns_at_tiny_size():
    """Two steps of batch 16 on noise, with a teacher with random weights."""
    run = ZOO.experiment(METHODS["srrl_tlcutmix"]).student_run("srrl_tlcutmix", 0)
    run = run.model_copy(update={"training": run.training.model_copy(update={"batch_size": 16})})
    torch.manual_seed(0)
    pixels = torch.randint(256, (32, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    images = ImageSet(pixels, torch.arange(32) % 100)
    teacher = create_model("resnet56", run.teacher.model, 100, 32).eval().requires_grad_(False)
    learner = new_student(run, images.labels)
    before = learner.student.fc.weight.clone()
    optimizer = torch.optim.SGD(learner.parameters(), 0.05)
    step = Step(run, learner, Online(teacher_extractor(run, teacher)), optimizer)
    plan = draw_plan(0, 0, 32, 16, 32, run.base_view, run.method.strong, torch.device("cpu"))
    losses = [step(batch, 0.05).loss.item() for batch in InMemoryBatches(images, run.base_view)(plan)]
    assert len(losses) == 2
    assert all(0 < loss < math.inf for loss in losses)
    assert not torch.equal(learner.student.fc.weight, before)
