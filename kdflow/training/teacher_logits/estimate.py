"""Estimate of what each source of teacher logits would cost for an experiment, without training."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from kdflow.config import Experiment, Method, RunSettings
from kdflow.models import create_model
from kdflow.training.step import teacher_views
from kdflow.training.teacher_logits import BASE_VIEW
from kdflow.training.teacher_logits.all_views import views_per_image

PASSES = 5  # timed forward passes of the teacher; the fastest counts


@dataclass(frozen=True)
class SourceCost:
    """Cost of one source.

    Attributes:
        source: online, replay or views.
        size: bytes on disk.
        views_ahead: number of views that the teacher computes before training.
        views_in_training: number of views that the teacher computes during training.
    """

    source: str
    size: int
    views_ahead: int
    views_in_training: int


@dataclass(frozen=True)
class Estimate:
    """Costs of all sources, and the speed of the teacher.

    Attributes:
        costs: cost of each source.
        speed: views per second that the teacher computes on `device`.
        device: the device that the speed was measured on.
        break_even_epochs: epochs of all methods and seeds from which views needs fewer teacher passes than online;
            None if the views of an image are not finite.
        epochs: epochs of all methods and seeds of the experiment that could read x from a store.
    """

    costs: list[SourceCost]
    speed: float
    device: str
    break_even_epochs: int | None
    epochs: int

    def hours(self, views: int) -> float:
        """Return the hours in which one process computes the teacher's logits for this many views."""
        return views / self.speed / 3600


def costs(experiment: Experiment, dtype: str) -> list[SourceCost]:
    """Return the costs of online, of replay and, if the views of an image are finite, of views."""
    params = experiment.params
    methods = [experiment.methods[name] for name in params.methods]
    run = experiment.student_run(params.methods[0], 0)
    row_bytes = run.classes * getattr(torch, dtype).itemsize
    images = len(params.seeds) * run.training.epochs * run.train_images
    views = sum(len(teacher_views(method)) for method in methods)
    cacheable = {view for method in methods for view in _cacheable(method)}
    with_features = sum(method.needs_features for method in methods)
    sources = [
        SourceCost("online", 0, 0, views * images),
        SourceCost("replay", len(cacheable) * images * row_bytes, 0, (len(cacheable) + with_features) * images),
    ]
    if run.base_view.resize is None:
        rows = run.train_images * views_per_image(run.base_view)
        computed = views * images - epochs_of_x(experiment) * run.train_images
        sources.append(SourceCost("views", rows * row_bytes, rows, computed))
    return sources


def _cacheable(method: Method) -> list[str]:
    # A store has no features, which only x needs.
    return [view for view in teacher_views(method) if view != BASE_VIEW or not method.needs_features]


def epochs_of_x(experiment: Experiment) -> int:
    """Return the number of epochs, of all methods and seeds, that could read the teacher's logits of x."""
    params = experiment.params
    readers = [name for name in params.methods if BASE_VIEW in _cacheable(experiment.methods[name])]
    return len(readers) * len(params.seeds) * experiment.student_run(params.methods[0], 0).training.epochs


def estimate(experiment: Experiment, dtype: str, device: torch.device) -> Estimate:
    """Return the costs and the speed of the teacher, measured with random weights."""
    run = experiment.student_run(experiment.params.methods[0], 0)
    torch.set_num_threads(experiment.params.compute.threads)  # as in a run
    return Estimate(
        costs=costs(experiment, dtype),
        speed=_speed(experiment, run, device),
        device=str(device),
        break_even_epochs=views_per_image(run.base_view) if run.base_view.resize is None else None,
        epochs=epochs_of_x(experiment),
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
