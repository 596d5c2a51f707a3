"""Benchmark of every loss: peak memory and the time of a step, relative to KD in the same run.

    python benchmarks/losses.py [--pair resnet56_to_resnet8] [--steps 20] [--markdown] [--json FILE]

Each loss is measured as its plain method, the first one in recipes/methods.yaml, on one CPU thread at CIFAR-100's size
and batch 64: a step of training, with the teacher computed in it. The step of the loss and the step of KD take turns,
so that a busy machine slows both; the figure is the median ratio of two steps that follow each other. Memory is the
peak of a new process after its steps, without that of the data and the loaded libraries, so that KD's is mostly the
activations of the student. Images are noise, which changes neither.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import describe_machine, save_results
from memory import CPU, ROOT, in_fresh_process, noise, peak, settings, source

from kdflow import config
from kdflow.training.batches import Batch, InMemoryBatches
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.step import Step, new_student

REFERENCE = "kd"
IMAGES = 20_000  # more than the negatives of crd among other classes


def methods() -> dict[str, str]:
    """Return the plain method of each loss, by the name of the loss."""
    plain: dict[str, str] = {}
    for name, method in config.load(ROOT).methods.items():
        if method.loss is not None and method.strong is None and method.kl == 0:
            plain.setdefault(method.loss.name, name)
    return plain


class Steps:
    """The steps of one method, on endless batches."""

    def __init__(self, method: str, pair: str) -> None:
        names = config.load(ROOT).pairs[pair]
        run = settings(method, names.teacher, names.student)
        self.run = run.model_copy(update={"train_images": IMAGES})
        self.images = noise(IMAGES, run.classes, run.image_size)

    def prepare(self) -> None:
        """Create models and loss, and take the first step."""
        training, learner = self.run.training, new_student(self.run, self.images.labels)
        optimizer = torch.optim.SGD(learner.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
        self.step, self.batches = Step(self.run, learner, source(self.run), optimizer), self._batches()
        self.seconds()

    def _batches(self) -> Iterator[Batch]:
        run, load = self.run, InMemoryBatches(self.images, self.run.base_view)
        for epoch in itertools.count():
            size, strong = run.training.batch_size, run.method.strong
            yield from load(draw_plan(0, epoch, IMAGES, size, run.image_size, run.base_view, strong, CPU))

    def seconds(self) -> float:
        """Return the seconds of one step."""
        batch = next(self.batches)
        start = time.perf_counter()
        self.step(batch, 1e-4).loss.item()
        return time.perf_counter() - start


def step_ratio(method: str, pair: str, steps: int) -> float:
    """Return the median of the time of a step of `method` divided by that of KD's next one."""
    torch.set_num_threads(1)
    both = [Steps(method, pair), Steps(REFERENCE, pair)]
    for one in both:
        one.prepare()
    times = [[one.seconds() for one in both] for _ in range(steps)]
    return statistics.median(measured / reference for measured, reference in times)


def step_memory(method: str, pair: str, steps: int) -> float:
    """Return by how many MB the steps of a method raise the peak of the process."""
    torch.set_num_threads(1)
    one = Steps(method, pair)
    before = peak()
    one.prepare()
    for _ in range(min(steps, 3)):
        one.seconds()
    return peak() - before


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56_to_resnet8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    print(f"{args.pair}, batch 64, 1 thread, {args.steps} steps; {describe_machine()}")
    base = in_fresh_process(step_memory, REFERENCE, args.pair, args.steps)
    ratios = {}
    for loss, method in methods().items():
        memory = in_fresh_process(step_memory, method, args.pair, args.steps) / base
        ratios[loss] = {"method": method, "memory": memory}
        ratios[loss]["time"] = in_fresh_process(step_ratio, method, args.pair, args.steps)
        form = "| {} | {:.2f} | {:.2f} |" if args.markdown else "{:14} time {:.2f}  memory {:.2f}"
        print(form.format(f"`{method}`" if args.markdown else method, ratios[loss]["time"], memory), flush=True)
    save_results(args.json, pair=args.pair, steps=args.steps, relative_to_kd=ratios)


if __name__ == "__main__":
    main()
