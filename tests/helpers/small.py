"""A run whose steps an oracle can follow: two tiny ResNets, 20 images of 8 px, 4 classes."""

import torch
from paths import ROOT
from torch import nn

from kdflow import config
from kdflow.config import Architecture, BaseView, Method, Model, RunSettings, Training
from kdflow.data import ImageSet, Loaded
from kdflow.models import create_model
from kdflow.training.batches import Batch, InMemoryBatches
from kdflow.training.epoch_plan import StepPlan, draw_plan
from kdflow.training.run import teacher_extractor
from kdflow.training.step import Step, StudentWithLoss
from kdflow.training.teacher_logits import Online

CPU = torch.device("cpu")
LAYERS = {"features": ("conv1", "layer1", "layer2", "layer3"), "head": "fc"}
# Widths of 16 and more, as shipped: torch 2.14's oneDNN corrupts the heap in backward at 4 channels, channels last.
STUDENT = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 16, 16]}, **LAYERS)
TEACHER = Model(family="resnet", options={"depth": 8, "widths": [16, 16, 32, 32]}, **LAYERS)
VIEWS = BaseView(crop=2, flip=True, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))


def _few_negatives(method: Method) -> Method:
    if method.loss is None or method.loss.name != "crd":
        return method
    options = {**method.loss.options, "negatives": 8}
    return method.model_copy(update={"loss": method.loss.model_copy(update={"options": options})})


METHODS = {name: _few_negatives(method) for name, method in config.load(ROOT).methods.items()}


def run_of(method: Method, **training: object) -> RunSettings:
    defaults = {
        "epochs": 3,
        "batch_size": 8,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "lr_milestones": (0.5, 0.75),
        "lr_gamma": 0.1,
        "eval_every": 2,
    }
    return RunSettings(
        dataset="tiny",
        train_images=20,
        classes=4,
        image_size=8,
        base_view=VIEWS,
        role="student",
        architecture="small",
        model=STUDENT,
        teacher=Architecture(name="larger", model=TEACHER) if method.needs_teacher else None,
        method=method,
        training=Training(**{**defaults, **training}),
        seed=3,
        teacher_logits="online",
    )


def images(n: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels.permute(0, 3, 1, 2), torch.arange(n) % 4)


DATA = Loaded(images(20, 0), images(10, 1), ["a", "b", "c", "d"], "d" * 64)


def teacher_for(method: Method) -> nn.Module | None:
    """Return a teacher with running statistics other than the initial ones, whose logits depend on the image."""
    if not method.needs_teacher:
        return None
    torch.manual_seed(9)
    model = create_model("larger", TEACHER, 4, 8).to(memory_format=torch.channels_last)
    for name, value in model.state_dict().items():
        if "running_mean" in name:
            value.uniform_(-0.2, 0.2)
        if "running_var" in name:
            value.uniform_(0.5, 1.5)
    with torch.no_grad():
        model.fc.weight.mul_(8)
    model.eval().requires_grad_(False)
    assert model(torch.randn(8, 3, 8, 8)).std(0).min() > 0.1
    return model


def step_plans(run: RunSettings, epoch: int = 0, device: torch.device = CPU) -> list[StepPlan]:
    return list(draw_plan(run.seed, epoch, 20, run.training.batch_size, 8, run.base_view, run.method.strong, device))


def batches_of(run: RunSettings, epoch: int = 0, train: ImageSet = DATA.train) -> list[Batch]:
    return [InMemoryBatches(train, run.base_view).batch(plan) for plan in step_plans(run, epoch, train.labels.device)]


def online_source(run: RunSettings, teacher: nn.Module | None) -> Online | None:
    if run.teacher is None or teacher is None:
        return None
    return Online(teacher_extractor(run, teacher))


def step_of(run: RunSettings, learner: StudentWithLoss, teacher: nn.Module | None) -> Step:
    optimizer = torch.optim.SGD(learner.parameters(), lr=123.0, momentum=0.9, weight_decay=5e-4)
    return Step(run, learner, online_source(run, teacher), optimizer)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
