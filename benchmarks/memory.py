"""How much memory a run of each method takes at CIFAR-100's size, and whether it grows with the steps.

    python benchmarks/memory.py [--methods kd crd_kd ...] [--pair resnet56_to_resnet20] [--steps 6] [--json FILE]
    python benchmarks/memory.py --growth [--methods kd_tlcutmix_pick crd_kd] [--json FILE]

The first prints, for a process of each method: the peak of its resident memory (torch included) once the images are
there, after some steps at batch 64, and after a test and a checkpoint. 50,000 images for training, of noise: memory
does not depend on what they show. The second trains for 1,000 steps, as `dvc repro` does, with tests and checkpoints:
resnet8 -> resnet8, batch 16, 2,000 images of 16 px, and prints the resident memory after every 100 and its slope.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from machine import keep, told

from kdflow import config
from kdflow.config import RunSettings
from kdflow.core.progress import Event, RunUpdate
from kdflow.data import ImageSet, Loaded
from kdflow.launch.parallel_runs import MALLOC_ENV
from kdflow.models import create_model
from kdflow.training import checkpoint, loop
from kdflow.training.batches import InMemoryBatches
from kdflow.training.checkpoint import RunProgress
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.evaluate import accuracy
from kdflow.training.loop import fit
from kdflow.training.run import teacher_extractor
from kdflow.training.step import Step, new_student
from kdflow.training.teacher_logits import Online

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
MB = 2**20
GROWN = 8.0  # MB in 1,000 steps: the allocator's own ups and downs are smaller
T = TypeVar("T")


def peak() -> float:
    """The most resident memory that this process has had, in MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / MB if sys.platform == "darwin" else most / 1024


def resident() -> float:
    """The resident memory of this process, in MB; its peak where there is no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB if statm.exists() else peak()


def noise(count: int, classes: int, size: int) -> ImageSet:
    """Images and labels."""
    pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
    return ImageSet(pixels.permute(0, 3, 1, 2), torch.arange(count) % classes)


def settings(method: str, teacher: str, student: str) -> RunSettings:
    """A run of CIFAR-100's settings."""
    experiment = config.load(ROOT)
    changed = {"dataset": "cifar100", "train_images": None, "teacher": teacher, "student": student}
    params = experiment.params.model_copy(update=changed)
    return experiment.model_copy(update={"params": params}).student_run(method, 0)


def source(run: RunSettings) -> Online | None:
    """A teacher with fresh weights."""
    if run.teacher is None:
        return None
    model = create_model(run.teacher.name, run.teacher.model, run.classes, run.image_size)
    model = model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Online(teacher_extractor(run, model))


def measure(method: str, pair: str, steps: int) -> dict[str, float]:
    """The peaks of one method, in MB."""
    torch.set_num_threads(1)
    names = config.load(ROOT).pairs[pair]
    run = settings(method, names.teacher, names.student)
    images, test = (noise(count, run.classes, run.image_size) for count in (run.train_images, 1_000))
    found = {"data": peak()}
    learner, training = new_student(run, images.labels), run.training
    optimizer = torch.optim.SGD(learner.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
    step, feed = Step(run, learner, source(run), optimizer), InMemoryBatches(images, run.base_view)
    batch_size, strong = training.batch_size, run.method.strong
    plan = draw_plan(run.seed, 0, len(images), batch_size, run.image_size, run.base_view, strong, CPU)
    for batch in itertools.islice(feed(plan), steps):
        step(batch, training.lr)
    found["steps"] = peak()
    accuracy(learner.student, test, run.base_view)
    found["test"] = peak()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "checkpoint", learner, optimizer, RunProgress(run="", started=""))
    return {**found, "checkpoint": peak()}


def growth(method: str, steps: int = 1_000) -> dict[int, float]:
    """The resident memory after every 100 steps, in MB."""
    torch.set_num_threads(1)
    run = settings(method, "resnet8", "resnet8")
    images, batch = 2_000, 16
    training = run.training.model_copy(update={"epochs": steps * batch // images, "batch_size": batch})
    small = {"image_size": 16, "train_images": images, "classes": 10, "training": training}
    if run.method.loss is not None and run.method.loss.name == "crd":
        few = run.method.loss.model_copy(update={"options": {"negatives": 1_000}})
        small["method"] = run.method.model_copy(update={"loss": few})
    run = run.model_copy(update=small)
    data = Loaded(noise(images, 10, 16), noise(500, 10, 16), [str(i) for i in range(10)], "")
    found: dict[int, float] = {}

    def look(event: Event) -> None:
        if isinstance(event, RunUpdate) and event.done % 100 == 0:
            found[event.done] = resident()

    loop.REPORT_EVERY = 0.0  # an event after every step
    learner = new_student(run, data.train.labels)
    with tempfile.TemporaryDirectory() as folder:
        fit(method, run, data, learner, source(run), Path(folder) / "checkpoint", "", look)
    return found


def alone(work: Callable[..., T], *arguments: object) -> T:
    """What it returns in a process of its own, with the allocator that runs have."""
    os.environ.update(MALLOC_ENV | os.environ)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def print_growth(method: str, found: dict[int, float]) -> float:
    """The figures and their slope, in MB per 1,000 steps once the first 200 have warmed up."""
    warm = {step: mb for step, mb in found.items() if step > 200}
    slope = 1_000 * statistics.linear_regression(list(warm), list(warm.values())).slope
    print(f"{method:20} " + " ".join(f"{mb:.1f}" for mb in found.values()), flush=True)
    print(f"{'':20} {slope:+.2f} MB per 1,000 steps: {'it grows' if slope > GROWN else 'it does not grow'}")
    return slope


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="all, or with --growth kd_tlcutmix_pick and crd_kd")
    parser.add_argument("--pair", default="resnet56_to_resnet20")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    if asked.growth:
        print(f"resident memory in MB after 100, 200, ... steps; {told()}")
        grown = {}
        for method in asked.methods or ["kd_tlcutmix_pick", "crd_kd"]:
            found = alone(growth, method)
            grown[method] = {"resident_mb": found, "mb_per_1000_steps": print_growth(method, found)}
        keep(asked.json, growth=grown)
        return
    print(f"{asked.pair}, batch 64, 50,000 images of 32 px, 1 thread; peak resident memory in MB; {told()}")
    peaks = {}
    for method in asked.methods or config.load(ROOT).methods:
        peaks[method] = alone(measure, method, asked.pair, asked.steps)
        print(f"{method:33} " + "  ".join(f"{name} {mb:5.0f}" for name, mb in peaks[method].items()), flush=True)
    keep(asked.json, pair=asked.pair, steps=asked.steps, peak_mb=peaks)


if __name__ == "__main__":
    main()
