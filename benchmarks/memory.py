"""Benchmark of memory: peak of a run of each method at CIFAR-100's size, and growth over many steps.

    python benchmarks/memory.py [--methods kd crd_kd ...] [--pair resnet56_to_resnet20] [--steps 6] [--json FILE]
    python benchmarks/memory.py --growth [--methods kd_tlcutmix_pick crd_kd] [--json FILE]

The first command prints, for a process of each method, the peak of its resident memory (with torch): with the data in
memory, after some steps at batch 64, and after an evaluation and a checkpoint. The 50,000 training images are noise,
which does not change the memory. The second command trains for 1,000 steps, as `dvc repro` does, with evaluation and
checkpoints: resnet8 -> resnet8, batch 16, 2,000 images of 16 px. It prints the resident memory after every 100 steps
and its slope.
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
from machine import describe_machine, save_results

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
GROWTH_LIMIT = 8.0  # MB per 1,000 steps, more than the fluctuations of the allocator
T = TypeVar("T")


def peak() -> float:
    """Return the peak of the resident memory of this process, in MB."""
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum / MB if sys.platform == "darwin" else maximum / 1024


def resident() -> float:
    """Return the resident memory of this process, in MB; its peak on a system without /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB if statm.exists() else peak()


def noise(count: int, classes: int, size: int) -> ImageSet:
    """Return images of noise with labels."""
    pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
    return ImageSet(pixels.permute(0, 3, 1, 2), torch.arange(count) % classes)


def settings(method: str, teacher: str, student: str) -> RunSettings:
    """Return a run with CIFAR-100's settings."""
    experiment = config.load(ROOT)
    changed = {"dataset": "cifar100", "train_images": None, "teacher": teacher, "student": student}
    params = experiment.params.model_copy(update=changed)
    return experiment.model_copy(update={"params": params}).student_run(method, 0)


def source(run: RunSettings) -> Online | None:
    """Return a teacher with random weights."""
    if run.teacher is None:
        return None
    model = create_model(run.teacher.name, run.teacher.model, run.classes, run.image_size)
    model = model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return Online(teacher_extractor(run, model))


def measure(method: str, pair: str, steps: int) -> dict[str, float]:
    """Return the peaks of one method, in MB."""
    torch.set_num_threads(1)
    names = config.load(ROOT).pairs[pair]
    run = settings(method, names.teacher, names.student)
    images, test = (noise(count, run.classes, run.image_size) for count in (run.train_images, 1_000))
    peaks = {"data": peak()}
    learner, training = new_student(run, images.labels), run.training
    optimizer = torch.optim.SGD(learner.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
    step, batches = Step(run, learner, source(run), optimizer), InMemoryBatches(images, run.base_view)
    batch_size, strong = training.batch_size, run.method.strong
    plan = draw_plan(run.seed, 0, len(images), batch_size, run.image_size, run.base_view, strong, CPU)
    for batch in itertools.islice(batches(plan), steps):
        step(batch, training.lr)
    peaks["steps"] = peak()
    accuracy(learner.student, test, run.base_view)
    peaks["test"] = peak()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "checkpoint", learner, optimizer, RunProgress(run="", started=""))
    return {**peaks, "checkpoint": peak()}


def growth(method: str, steps: int = 1_000) -> dict[int, float]:
    """Return the resident memory after every 100 steps, in MB."""
    torch.set_num_threads(1)
    run = settings(method, "resnet8", "resnet8")
    images, batch = 2_000, 16
    training = run.training.model_copy(update={"epochs": steps * batch // images, "batch_size": batch})
    changes = {"image_size": 16, "train_images": images, "classes": 10, "training": training}
    if run.method.loss is not None and run.method.loss.name == "crd":
        few = run.method.loss.model_copy(update={"options": {"negatives": 1_000}})
        changes["method"] = run.method.model_copy(update={"loss": few})
    run = run.model_copy(update=changes)
    data = Loaded(noise(images, 10, 16), noise(500, 10, 16), [str(i) for i in range(10)], "")
    resident_mb: dict[int, float] = {}

    def measure_memory(event: Event) -> None:
        if isinstance(event, RunUpdate) and event.done % 100 == 0:
            resident_mb[event.done] = resident()

    loop.REPORT_EVERY = 0.0  # an event after every step
    learner = new_student(run, data.train.labels)
    with tempfile.TemporaryDirectory() as folder:
        fit(method, run, data, learner, source(run), Path(folder) / "checkpoint", "", measure_memory)
    return resident_mb


def in_fresh_process(work: Callable[..., T], *arguments: object) -> T:
    """Call a function in a new process, with the allocator settings of a run, and return its result."""
    os.environ.update(MALLOC_ENV | os.environ)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def print_growth(method: str, resident_mb: dict[int, float]) -> float:
    """Print the figures; return their slope after the first 200 steps, in MB per 1,000 steps."""
    warm = {step: mb for step, mb in resident_mb.items() if step > 200}
    slope = 1_000 * statistics.linear_regression(list(warm), list(warm.values())).slope
    print(f"{method:20} " + " ".join(f"{mb:.1f}" for mb in resident_mb.values()), flush=True)
    print(f"{'':20} {slope:+.2f} MB per 1,000 steps: {'it grows' if slope > GROWTH_LIMIT else 'it does not grow'}")
    return slope


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="all, or with --growth kd_tlcutmix_pick and crd_kd")
    parser.add_argument("--pair", default="resnet56_to_resnet20")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    if args.growth:
        print(f"resident memory in MB after 100, 200, ... steps; {describe_machine()}")
        growths = {}
        for method in args.methods or ["kd_tlcutmix_pick", "crd_kd"]:
            resident_mb = in_fresh_process(growth, method)
            growths[method] = {"resident_mb": resident_mb, "mb_per_1000_steps": print_growth(method, resident_mb)}
        save_results(args.json, growth=growths)
        return
    print(f"{args.pair}, batch 64, 50,000 images of 32 px, 1 thread; peak resident memory in MB; {describe_machine()}")
    peaks = {}
    for method in args.methods or config.load(ROOT).methods:
        peaks[method] = in_fresh_process(measure, method, args.pair, args.steps)
        print(f"{method:33} " + "  ".join(f"{name} {mb:5.0f}" for name, mb in peaks[method].items()), flush=True)
    save_results(args.json, pair=args.pair, steps=args.steps, peak_mb=peaks)


if __name__ == "__main__":
    main()
