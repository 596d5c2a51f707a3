"""Benchmark of a training step, against one that is written in the usual way and does the same work.

    python benchmarks/step.py [--pairs resnet56_to_resnet20 ...] [--methods kd ...] [--sources online ...] [--json FILE]

The reference reads images one by one through PIL and a DataLoader, runs the teacher separately for x and for the
views, runs it again for the picked views, and leaves all layouts as torch makes them. Both start from the same weights
and see the same crops, flips and boxes, so their first losses must agree: within 1e-5 online, within 2e-3 if a warm
store gives the teacher's logits in float16. They take turns, so that a busy machine slows both. Images are noise,
which does not change the speed.

Times are CPU seconds of this process, so that other programs on the machine count less.

Sources: online; folded (online, precision.fold_teacher); onnxruntime (online, precision.teacher_runtime); views and
replay, both warm. The share of the peak is the speed of convolutions and fully connected layers in this step, by
`kdflow cost` (the backward pass counts twice the forward pass), divided by that of the fastest of some single
convolutions.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine, save_results
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from kdflow import config
from kdflow.config import Experiment, Precision, RunSettings
from kdflow.data import ImageSet
from kdflow.launch.parallel_runs import MALLOC_ENV
from kdflow.models import create_model
from kdflow.models.cost import count_cost
from kdflow.training import teacher_logits
from kdflow.training.batches import InMemoryBatches
from kdflow.training.epoch_plan import EpochPlan, StepPlan, draw_plan
from kdflow.training.run import teacher_extractor
from kdflow.training.step import Step, new_student, teacher_views
from kdflow.training.teacher_logits import BASE_VIEW, Online, TeacherSource, store
from kdflow.training.teacher_logits.all_views import StoredViews, read_views, store_rows, store_shape
from kdflow.training.teacher_logits.replay import Replay, ReplayCache

ROOT = Path(__file__).parents[1]
STORES = ("views", "replay")
CPU = torch.device("cpu")


class Usual(Dataset[tuple[Tensor, int]]):
    """Images cropped, flipped and normalised one by one, as from files."""

    def __init__(self, images: ImageSet, run: RunSettings, plans: list[StepPlan]) -> None:
        self.pictures = [Image.fromarray(image) for image in images.images.permute(0, 2, 3, 1).numpy()]
        self.labels, self.base_view = images.labels.tolist(), run.base_view
        self.index, self.shift, self.flip = (
            torch.cat([getattr(plan, name) for plan in plans]).tolist() for name in ("index", "shift", "flip")
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """Return the image at a position of the epoch's order, and its label."""
        (top, left), picture = self.shift[position], self.pictures[self.index[position]]
        padded = ImageOps.expand(picture, self.base_view.crop)
        crop = padded.crop((left, top, left + picture.width, top + picture.height))
        x = pil_to_tensor(ImageOps.mirror(crop) if self.flip[position] else crop).float() / 255
        return normalize(x, list(self.base_view.mean), list(self.base_view.std)), self.labels[self.index[position]]


def kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return the KL of each sample at temperature tau, times tau^2."""
    p, q = F.softmax(teacher / tau, 1), F.log_softmax(student / tau, 1)
    return F.kl_div(q, p, reduction="none").sum(1) * tau**2


def cutmix(x: Tensor, draw: dict[str, Tensor]) -> Tensor:
    """Return each image with its partner's box."""
    top, bottom, left, right = draw["box"].tolist()
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[draw["partner"][: len(x)]][:, :, top:bottom, left:right]
    return mixed


class Reference:
    """A training step in the usual way."""

    def __init__(self, run: RunSettings, student: nn.Module, teacher: nn.Module) -> None:
        self.run, self.student, self.teacher = run, student, teacher
        training = run.training
        self.optimizer = torch.optim.SGD(student.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)

    def __call__(self, x: Tensor, labels: Tensor, plan: StepPlan) -> float:
        """Update the student; return the loss."""
        method, tau = self.run.method, self.run.method.tau
        logits = self.student(x)
        loss = method.ce * F.cross_entropy(logits, labels)
        if method.kl:
            with torch.no_grad():
                teacher_logits = self.teacher(x)
            loss = loss + method.kl * kl(logits, teacher_logits, tau).mean()
        if method.strong:
            views = torch.cat([cutmix(x, draw) for draw in plan.strong])
            if method.strong.pick:
                with torch.no_grad():
                    scores = kl(self.student(views), self.teacher(views), tau)
                views = views[scores.argsort(descending=True)[: len(views) // 2]]
            with torch.no_grad():
                teacher_logits = self.teacher(views)
            loss = loss + method.kl * kl(self.student(views), teacher_logits, tau).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def settings(experiment: Experiment, pair: str, method: str, source: str, images: int) -> RunSettings:
    """Return a run of the pair with CIFAR-100's settings."""
    names = experiment.pairs[pair]
    params = experiment.params.model_copy(
        update={
            "dataset": "cifar100",
            "teacher": names.teacher,
            "student": names.student,
            "train_images": images,
            "teacher_logits": source if source in STORES else "online",
            "precision": Precision(
                fold_teacher=source == "folded", teacher_runtime="onnxruntime" if source == "onnxruntime" else "torch"
            ),
        }
    )
    return experiment.model_copy(update={"params": params}).student_run(method, 0)


def teacher_of(experiment: Experiment, name: str) -> nn.Module:
    """Return a teacher with random weights."""
    torch.manual_seed(1)
    return create_model(name, experiment.models[name], 100, 32).eval().requires_grad_(False)


def source_of(
    run: RunSettings, teacher: nn.Module, batches: InMemoryBatches, plan: EpochPlan, folder: Path
) -> TeacherSource | None:
    """Return the source of the teacher's logits; a store has all views of the plan."""
    if run.teacher is None:
        return None
    extractor, key = teacher_extractor(run, teacher), teacher_logits.cache_key(run, "", "")
    kind, dtype = run.logit_source
    source: TeacherSource = Online(extractor)
    if kind == "views":
        start = store.create_store(folder / "views.h5", store_shape(run), dtype, key)
        logits = np.memmap(folder / "views.h5", dtype, "r+", start, store_shape(run))
        for batch in batches(plan):
            rows = store_rows(batch.plan.index, batch.plan.shift, batch.plan.flip, run.base_view)
            logits[rows] = extractor(batch.x).logits.numpy()
        logits.flush()
        store.finalize(folder / "views.h5")
        source = StoredViews(Online(extractor), read_views(folder / "views.h5", run, dtype, key), run.base_view)
    if kind == "replay":
        cache = ReplayCache(folder, key, 10**12)
        source = Replay(extractor, cache, key, run.classes, dtype, print)
        learner = new_student(run, batches.images.labels)
        filling = Step(run, learner, source, torch.optim.SGD(learner.parameters(), 0.0))
        source.begin(0, plan)
        for batch in batches(plan):
            filling.query_teacher(batch, filling.strong.apply_view(batch) if filling.strong else {})
        source.end()
    source.begin(0, plan)
    return source


def peak() -> float:
    """Return the highest speed of a single convolution on this machine, in floating point operations per second."""
    best = 0.0
    for channels, size in ((32, 16), (64, 8), (64, 16), (128, 8), (128, 16), (256, 8)):
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        x = torch.randn(64, channels, size, size).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = min(timed(lambda layer=layer, x=x: [layer(x)])[0] for _ in range(20))
        best = max(best, 2 * 64 * size**2 * channels**2 * 9 / seconds)
    return best


def flops(experiment: Experiment, run: RunSettings) -> float:
    """Return the floating point operations of a step, per image."""
    student = count_cost(create_model(run.architecture, run.model, run.classes, run.image_size), run.image_size).flops
    strong = run.method.strong
    scoring = strong.pick.pool if strong and strong.pick else 0
    total = student * (3 * (2 if strong else 1) + scoring)
    if run.teacher is not None:
        read = {"online": (), "views": (BASE_VIEW,), "replay": teacher_views(run.method)}[run.logit_source[0]]
        views = len(set(teacher_views(run.method)) - set(read))
        total += count_cost(teacher_of(experiment, run.teacher.name), run.image_size).flops * views
    return float(total)


def compare(experiment: Experiment, pair: str, method: str, source: str, args: argparse.Namespace) -> dict[str, float]:
    """Run both steps in turn; return images per second and the median of the rounds' ratios."""
    batch_size = 64
    n = (args.rounds + 1) * args.steps * batch_size
    run = settings(experiment, pair, method, source, n)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 32, 32, 3), generator=generator, dtype=torch.uint8)
    images = ImageSet(pixels.permute(0, 3, 1, 2), torch.randint(100, (n,), generator=generator))
    plan = draw_plan(0, 0, n, batch_size, 32, run.base_view, run.method.strong, CPU)
    teacher, learner = teacher_of(experiment, experiment.pairs[pair].teacher), new_student(run, images.labels)
    student = create_model(run.architecture, run.model, 100, 32)
    student.load_state_dict(learner.student.state_dict())
    training = run.training
    optimizer = torch.optim.SGD(learner.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
    batches = InMemoryBatches(images, run.base_view)
    with tempfile.TemporaryDirectory() as folder:
        fast = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
        step = Step(run, learner, source_of(run, fast, batches, plan, Path(folder)), optimizer)
        reference = Reference(run, student.train(), teacher)
        usual_batches = iter(DataLoader(Usual(images, run, list(plan)), batch_size))
        times, rounds = list[tuple[float, float]](), iter(plan)
        for i in range(args.rounds + 1):  # the first warms up
            plans = list(itertools.islice(rounds, args.steps))
            works = {
                "kdflow": lambda plans=plans: [step(batches.batch(p), training.lr).loss.item() for p in plans],
                "usual": lambda plans=plans: [reference(*next(usual_batches), p) for p in plans],
            }
            results = {name: timed(works[name]) for name in sorted(works, reverse=i % 2 == 1)}
            if i == 0:
                tolerance = 2e-3 if source in STORES else 1e-5
                np.testing.assert_allclose(results["kdflow"][1][:1], results["usual"][1][:1], rtol=tolerance)
            times.append((results["kdflow"][0] / args.steps, results["usual"][0] / args.steps))
    seconds, usual = (statistics.median(column) for column in zip(*times[1:], strict=True))
    speed = batch_size / seconds
    return {
        "images_per_second": speed,
        "reference": batch_size / usual,
        "ratio": statistics.median(b / a for a, b in times[1:]),
        "share_of_peak": speed * flops(experiment, run) / args.peak,
    }


def timed(work: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """Return the CPU seconds of a call, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["resnet56_to_resnet20"])
    parser.add_argument("--methods", nargs="+", default=["ce", "kd", "kd_tlcutmix", "kd_tlcutmix_pick"])
    parser.add_argument("--sources", nargs="+", default=["online", "folded", "onnxruntime", *STORES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    experiment, args.peak = config.load(ROOT), peak()
    print(f"batch 64 at 32 px, 1 thread, {describe_machine()}; peak {args.peak / 1e9:.0f} GFLOP/s")
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for pair, source in itertools.product(args.pairs, args.sources):
        steps = results.setdefault(pair, {}).setdefault(source, {})
        for method in args.methods:
            if source != "online" and not experiment.methods[method].needs_teacher:
                continue
            steps[method] = compare(experiment, pair, method, source, args)
            figures = "  ".join(f"{name} {value:.2f}" for name, value in steps[method].items())
            print(f"{pair} {source:7} {method:17} {figures}", flush=True)
        if {"kd_tlcutmix", "kd_tlcutmix_pick"} <= steps.keys():
            slower = steps["kd_tlcutmix"]["images_per_second"] / steps["kd_tlcutmix_pick"]["images_per_second"]
            print(f"{pair} {source:7} pick takes {slower:.2f} times as long as TLCutMix", flush=True)
    save_results(args.json, peak_gflops=args.peak / 1e9, steps=results)


if __name__ == "__main__":
    if not MALLOC_ENV.keys() <= os.environ.keys():  # as in a run, for both steps
        os.execve(sys.executable, [sys.executable, *sys.argv], MALLOC_ENV | os.environ)
    main()
