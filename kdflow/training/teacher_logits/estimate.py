"""What each store of teacher logits would cost and save for an experiment, without filling it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from kdflow.config import Experiment, Method, RunSettings
from kdflow.models import create_model
from kdflow.training.step import teacher_views
from kdflow.training.teacher_logits import BASE_VIEW
from kdflow.training.teacher_logits.all_views import views_per_image

PASSES = 5  # of the teacher, the fastest counts


@dataclass(frozen=True)
class SourceCost:
    """Of one source: bytes on disk, and about how many views the teacher is asked, ahead and during training."""

    source: str
    size: int
    ahead: int
    during: int


@dataclass(frozen=True)
class Estimate:
    """The sources side by side. The teacher answers about `speed` views a second on `device`.

    views pays from `pays_from` epochs on, over all methods and seeds, of which the experiment `has` so many.
    """

    costs: list[SourceCost]
    speed: float
    device: str
    pays_from: int | None
    has: int

    def hours(self, views: int) -> float:
        """How long one process asks the teacher about so many views."""
        return views / self.speed / 3600


def costs(experiment: Experiment, dtype: str) -> list[SourceCost]:
    """Of asking online, of replay, and where views can be counted of all ahead, for the methods, seeds and epochs."""
    params = experiment.params
    methods = [experiment.methods[name] for name in params.methods]
    run = experiment.student_run(params.methods[0], 0)
    row = run.classes * getattr(torch, dtype).itemsize
    times = len(params.seeds) * run.training.epochs * run.train_images
    asked = sum(len(teacher_views(method)) for method in methods)
    once = {name for method in methods for name in _readable(method)}
    with_features = sum(method.loss is not None for method in methods)
    found = [
        SourceCost("online", 0, 0, asked * times),
        SourceCost("replay", len(once) * times * row, 0, (len(once) + with_features) * times),
    ]
    if run.base_view.resize is None:
        rows = run.train_images * views_per_image(run.base_view)
        found.append(SourceCost("views", rows * row, rows, asked * times - epochs_of_x(experiment) * run.train_images))
    return found


def _readable(method: Method) -> list[str]:
    # A loss on features wants more of x than its logits.
    return [name for name in teacher_views(method) if name != BASE_VIEW or method.loss is None]


def epochs_of_x(experiment: Experiment) -> int:
    """How many epochs, of all methods and seeds, could read what the teacher says of x."""
    params = experiment.params
    readers = [name for name in params.methods if BASE_VIEW in _readable(experiment.methods[name])]
    return len(readers) * len(params.seeds) * experiment.student_run(params.methods[0], 0).training.epochs


def estimate(experiment: Experiment, dtype: str, device: torch.device) -> Estimate:
    """The costs, and the teacher's speed measured with weights of no meaning."""
    run = experiment.student_run(experiment.params.methods[0], 0)
    torch.set_num_threads(experiment.params.compute.threads)  # as a run has it
    return Estimate(
        costs=costs(experiment, dtype),
        speed=_speed(experiment, run, device),
        device=str(device),
        pays_from=views_per_image(run.base_view) if run.base_view.resize is None else None,
        has=epochs_of_x(experiment),
    )


def _speed(experiment: Experiment, run: RunSettings, device: torch.device) -> float:
    name = experiment.params.teacher
    model = create_model(name, experiment.models[name], run.classes, run.image_size)
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    x = torch.zeros(run.training.batch_size, 3, run.image_size, run.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(PASSES):
            start = time.perf_counter()
            model(x)[0, 0].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
    return len(x) / min(seconds)
