"""Golden numbers of every method.

A refactoring must not change these files. To change a number on purpose, write the files again with
`pytest tests/test_golden.py --update-golden [-k METHOD]` and describe the change in CHANGELOG.md.
"""

import json

import pytest
import torch
from paths import ROOT
from small import DATA, METHODS, TEACHER, VIEWS, batches_of, run_of, step_of, teacher_for

from kdflow import config
from kdflow.config import BaseView, Method
from kdflow.models import create_model
from kdflow.training.evaluate import accuracy, predict_logits
from kdflow.training.schedule import learning_rate
from kdflow.training.step import new_student

FOLDER = ROOT / "tests/golden"
BASE_VIEWS = {"none": (0, False), "flip": (0, True), "flip+crop": (2, True)}
RELATIVE = 1e-5  # processors differ in the last digits


def losses(method: Method, base_view: BaseView) -> list[float]:
    """Return the losses of the first five steps, three of the first epoch and two of the second."""
    run = run_of(method).model_copy(update={"base_view": base_view})
    step = step_of(run, new_student(run, DATA.train.labels), teacher_for(method))
    batches = (batches_of(run) + batches_of(run, epoch=1))[:5]
    return [step(batch, 0.001).loss.item() for batch in batches]


def schedule(method: str, epochs: int) -> list[tuple[int, float]]:
    """Return the epochs at which the learning rate changes, and the new learning rates."""
    experiment = config.load(ROOT)
    params = experiment.params.model_copy(update={"dataset": "cifar100", "epochs": epochs})
    run = experiment.model_copy(update={"params": params}).student_run(method, 0)
    rates = [learning_rate(run.training, epoch * 782, 782) for epoch in range(epochs)]
    return [(epoch, lr) for epoch, lr in enumerate(rates) if epoch == 0 or lr != rates[epoch - 1]]


def evaluation() -> dict[str, float]:
    """Return the accuracy of a fixed model on fixed images, measured as that of students."""
    torch.manual_seed(0)
    model = create_model("larger", TEACHER, 4, 8)
    logits = predict_logits(model, DATA.test, VIEWS)
    measured = accuracy(model, DATA.test, VIEWS)
    return {"top1": measured.top1, "top5": measured.top5, "mean_square_logit": logits.square().mean().item()}


def golden(name: str) -> dict:
    views = {key: VIEWS.model_copy(update={"crop": crop, "flip": flip}) for key, (crop, flip) in BASE_VIEWS.items()}
    return {
        "losses": {key: losses(METHODS[name], view) for key, view in views.items()},
        "learning_rates": {str(epochs): [list(point) for point in schedule(name, epochs)] for epochs in (60, 240, 960)},
        "evaluation": evaluation(),
    }


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in _numbers(value[key])]
    return [number for item in value for number in _numbers(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", METHODS)
def test_numbers_are_golden(name, pytestconfig):
    file, numbers = FOLDER / f"{name}.json", golden(name)
    if pytestconfig.getoption("update_golden"):
        file.write_text(json.dumps(numbers, indent=1) + "\n")
        pytest.skip(f"{file} was written again")
    expected = json.loads(file.read_text())
    assert numbers.keys() == expected.keys()
    for key, values in numbers.items():
        # PKT sums terms that cancel to a thousandth of their size, so that float32 has a digit less.
        tolerance = 10 * RELATIVE if name.startswith("pkt") else RELATIVE
        assert _numbers(values) == pytest.approx(_numbers(expected[key]), rel=tolerance), key


def test_every_golden_file_belongs_to_a_method():
    assert {file.stem for file in FOLDER.glob("*.json")} == set(METHODS)


def test_a_changed_weight_is_noticed():
    expected = json.loads((FOLDER / "kd.json").read_text())["losses"]["none"]
    changed = METHODS["kd"].model_copy(update={"kl": METHODS["kd"].kl * 1.001})
    assert losses(changed, VIEWS.model_copy(update={"crop": 0, "flip": False})) != pytest.approx(expected, rel=RELATIVE)
