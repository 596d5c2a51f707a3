"""Accuracy against a slow loop, and a model that is left as it was."""

import pytest
import torch
from torch import nn

from kdflow.config import BaseView
from kdflow.data import ImageSet
from kdflow.training.evaluate import accuracy, agreement

VIEWS = BaseView(crop=1, flip=True, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))


def _images(n: int, classes: int) -> ImageSet:
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(256, (n, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels.permute(0, 3, 1, 2), torch.randint(classes, (n,), generator=generator))


def _model(classes: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, classes))
    model[0].running_mean.uniform_(-1, 1)
    model[0].running_var.uniform_(0.5, 2)
    return model.train()


def _slow(model: nn.Sequential, images: ImageSet) -> tuple[float, float]:
    """Image by image and number by number, with the running statistics."""
    norm, linear = model[0], model[3]
    first = among = 0
    for pixels, label in zip(images.images.tolist(), images.labels.tolist(), strict=True):
        values = []
        for channel in range(3):
            scale = norm.weight[channel].item() / (norm.running_var[channel].item() + 1e-5) ** 0.5
            for row in pixels[channel]:
                for value in row:
                    x = (value / 255 - VIEWS.mean[channel]) / VIEWS.std[channel]
                    values.append((x - norm.running_mean[channel].item()) * scale + norm.bias[channel].item())
        x = torch.tensor(values, dtype=torch.float64)
        logits = (linear.weight.double() @ x + linear.bias.double()).tolist()
        ranked = sorted(range(len(logits)), key=lambda i: -logits[i])
        first += ranked[0] == label
        among += label in ranked[:5]
    return 100 * first / len(images.labels), 100 * among / len(images.labels)


@pytest.mark.parametrize(("n", "classes"), [(300, 10), (128, 7), (129, 5), (50, 4), (1, 2), (256, 100)])
def test_accuracy_equals_a_slow_loop(n, classes):
    model, images = _model(classes), _images(n, classes)
    found = accuracy(model, images, VIEWS)
    assert (found.top1, found.top5) == pytest.approx(_slow(model, images), abs=1e-4)
    if classes <= 5:
        assert found.top5 == 100


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_running_statistics_are_left_as_they_were(training):
    model, images = _model(10).train(training), _images(140, 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = accuracy(model, images, VIEWS)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert accuracy(model, images, VIEWS) == first  # no dropout, no randomness
    assert all(parameter.grad is None for parameter in model.parameters())


def test_agreement_equals_a_slow_loop():
    logits, answers = torch.randn(37, 5, generator=torch.Generator().manual_seed(3)), torch.arange(37) % 5
    same = sum(
        max(range(5), key=row.__getitem__) == answer
        for row, answer in zip(logits.tolist(), answers.tolist(), strict=True)
    )
    assert agreement(logits, answers) == pytest.approx(100 * same / 37) and 0 < same < 37
    assert agreement(logits, logits.argmax(1)) == 100
