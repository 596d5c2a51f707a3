"""How much faster a training step is than one written in the usual way, doing the same work.

    python benchmarks/step.py [--pairs resnet56_to_resnet20 ...] [--methods kd ...] [--sources online ...] [--json FILE]

The reference reads images one by one through PIL and a DataLoader, asks the teacher for x and for the views apart,
asks it again for the views that were picked, and leaves all layouts as torch makes them. Both start from the same
weights and see the same crops, flips and boxes, so their first losses must agree: within 1e-5 where the teacher is
asked online, within 2e-3 where a warm store gives its logits in float16. They take turns, so that a busy machine
slows both. Images are noise: speed does not depend on what they show.

Sources: online; folded (online, precision.fold_teacher); views and replay, each warm. The share of the peak is what
convolutions and fully connected layers compute a second, by `kdflow cost`, in this step (the backward pass counts
twice the forward), against the fastest of some convolutions alone.
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
from machine import keep, told
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
    """Images as files would give them: cropped, flipped and normalised one by one."""

    def __init__(self, images: ImageSet, run: RunSettings, rows: list[StepPlan]) -> None:
        self.pictures = [Image.fromarray(image) for image in images.images.permute(0, 2, 3, 1).numpy()]
        self.labels, self.base_view = images.labels.tolist(), run.base_view
        self.index, self.shift, self.flip = (
            torch.cat([getattr(row, name) for row in rows]).tolist() for name in ("index", "shift", "flip")
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """The image at a place of the epoch's order, and its label."""
        (top, left), picture = self.shift[place], self.pictures[self.index[place]]
        padded = ImageOps.expand(picture, self.base_view.crop)
        cut = padded.crop((left, top, left + picture.width, top + picture.height))
        x = pil_to_tensor(ImageOps.mirror(cut) if self.flip[place] else cut).float() / 255
        return normalize(x, list(self.base_view.mean), list(self.base_view.std)), self.labels[self.index[place]]


def kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """KL of each sample at temperature tau, times tau^2."""
    p, q = F.softmax(teacher / tau, 1), F.log_softmax(student / tau, 1)
    return F.kl_div(q, p, reduction="none").sum(1) * tau**2


def cutmix(x: Tensor, draw: dict[str, Tensor]) -> Tensor:
    """Each image with its partner's box."""
    top, bottom, left, right = draw["box"].tolist()
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x[draw["partner"][: len(x)]][:, :, top:bottom, left:right]
    return mixed


class Reference:
    """A step in the usual way."""

    def __init__(self, run: RunSettings, student: nn.Module, teacher: nn.Module) -> None:
        self.run, self.student, self.teacher = run, student, teacher
        training = run.training
        self.optimizer = torch.optim.SGD(student.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)

    def __call__(self, x: Tensor, labels: Tensor, row: StepPlan) -> float:
        """Update the student; returns the loss."""
        method, tau = self.run.method, self.run.method.tau
        logits = self.student(x)
        loss = method.ce * F.cross_entropy(logits, labels)
        if method.kl:
            with torch.no_grad():
                taught = self.teacher(x)
            loss = loss + method.kl * kl(logits, taught, tau).mean()
        if method.strong:
            views = torch.cat([cutmix(x, draw) for draw in row.strong])
            if method.strong.pick:
                with torch.no_grad():
                    scores = kl(self.student(views), self.teacher(views), tau)
                views = views[scores.argsort(descending=True)[: len(views) // 2]]
            with torch.no_grad():
                taught = self.teacher(views)
            loss = loss + method.kl * kl(self.student(views), taught, tau).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def settings(experiment: Experiment, pair: str, method: str, source: str, images: int) -> RunSettings:
    """A run of the pair on CIFAR-100's settings."""
    names = experiment.pairs[pair]
    params = experiment.params.model_copy(
        update={
            "dataset": "cifar100",
            "teacher": names.teacher,
            "student": names.student,
            "train_images": images,
            "teacher_logits": source if source in STORES else "online",
            "precision": Precision(fold_teacher=source == "folded"),
        }
    )
    return experiment.model_copy(update={"params": params}).student_run(method, 0)


def teacher_of(experiment: Experiment, name: str) -> nn.Module:
    """Fresh weights will do."""
    torch.manual_seed(1)
    return create_model(name, experiment.models[name], 100, 32).eval().requires_grad_(False)


def source_of(
    run: RunSettings, teacher: nn.Module, feed: InMemoryBatches, plan: EpochPlan, folder: Path
) -> TeacherSource | None:
    """Where the teacher's logits come from; a store has all that the plan will ask for."""
    if run.teacher is None:
        return None
    ask, about = teacher_extractor(run, teacher), teacher_logits.cache_key(run, "", "")
    kind, dtype = run.logit_source
    source: TeacherSource = Online(ask)
    if kind == "views":
        start = store.create_store(folder / "views.h5", store_shape(run), dtype, about)
        kept = np.memmap(folder / "views.h5", dtype, "r+", start, store_shape(run))
        for batch in feed(plan):
            row = batch.row
            kept[store_rows(row.index, row.shift, row.flip, run.base_view)] = ask(batch.x).logits.numpy()
        kept.flush()
        store.finalize(folder / "views.h5")
        source = StoredViews(ask, read_views(folder / "views.h5", run, dtype, about), run.base_view)
    if kind == "replay":
        shelf = ReplayCache(folder, about, 10**12)
        source = Replay(ask, shelf, about, run.classes, dtype, print)
        learner = new_student(run, feed.images.labels)
        filling = Step(run, learner, source, torch.optim.SGD(learner.parameters(), 0.0))
        source.begin(0, plan)
        for batch in feed(plan):
            filling.teach(batch, filling.strong.views(batch) if filling.strong else {})
        source.end()
    source.begin(0, plan)
    return source


def peak() -> float:
    """The most floating point operations a second that a convolution alone reaches here."""
    best = 0.0
    for channels, size in ((32, 16), (64, 8), (64, 16), (128, 8), (128, 16), (256, 8)):
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        x = torch.randn(64, channels, size, size).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = min(timed(lambda layer=layer, x=x: [layer(x)])[0] for _ in range(20))
        best = max(best, 2 * 64 * size**2 * channels**2 * 9 / seconds)
    return best


def flops(experiment: Experiment, run: RunSettings) -> float:
    """Of one image in our step."""
    student = count_cost(create_model(run.architecture, run.model, run.classes, run.image_size), run.image_size).flops
    strong = run.method.strong
    scoring = strong.pick.pool if strong and strong.pick else 0
    total = student * (3 * (2 if strong else 1) + scoring)
    if run.teacher is not None:
        read = {"online": (), "views": (BASE_VIEW,), "replay": teacher_views(run.method)}[run.logit_source[0]]
        views = len(set(teacher_views(run.method)) - set(read))
        total += count_cost(teacher_of(experiment, run.teacher.name), run.image_size).flops * views
    return float(total)


def compare(experiment: Experiment, pair: str, method: str, source: str, asked: argparse.Namespace) -> dict[str, float]:
    """Both steps in turn; images a second, and the median of the rounds' ratios."""
    batch_size = 64
    n = (asked.rounds + 1) * asked.steps * batch_size
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
    feed = InMemoryBatches(images, run.base_view)
    with tempfile.TemporaryDirectory() as folder:
        fast = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
        step = Step(run, learner, source_of(run, fast, feed, plan, Path(folder)), optimizer)
        reference = Reference(run, student.train(), teacher)
        batches = iter(DataLoader(Usual(images, run, list(plan)), batch_size))
        times, rounds = list[tuple[float, float]](), iter(plan)
        for i in range(asked.rounds + 1):  # the first warms up
            mine = list(itertools.islice(rounds, asked.steps))
            works = {
                "ours": lambda mine=mine: [step(feed.batch(row), training.lr).loss.item() for row in mine],
                "usual": lambda mine=mine: [reference(*next(batches), row) for row in mine],
            }
            found = {name: timed(works[name]) for name in sorted(works, reverse=i % 2 == 1)}
            if i == 0:
                within = 2e-3 if source in STORES else 1e-5
                np.testing.assert_allclose(found["ours"][1][:1], found["usual"][1][:1], rtol=within)
            times.append((found["ours"][0] / asked.steps, found["usual"][0] / asked.steps))
    ours, usual = (statistics.median(column) for column in zip(*times[1:], strict=True))
    speed = batch_size / ours
    return {
        "images_per_second": speed,
        "reference": batch_size / usual,
        "ratio": statistics.median(b / a for a, b in times[1:]),
        "share_of_peak": speed * flops(experiment, run) / asked.peak,
    }


def timed(work: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """Seconds that it takes, and what it returns."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["resnet56_to_resnet20"])
    parser.add_argument("--methods", nargs="+", default=["ce", "kd", "kd_tlcutmix", "kd_tlcutmix_pick"])
    parser.add_argument("--sources", nargs="+", default=["online", "folded", *STORES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    experiment, asked.peak = config.load(ROOT), peak()
    print(f"batch 64 at 32 px, 1 thread, {told()}; peak {asked.peak / 1e9:.0f} GFLOP/s")
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for pair, source in itertools.product(asked.pairs, asked.sources):
        steps = found.setdefault(pair, {}).setdefault(source, {})
        for method in asked.methods:
            if source != "online" and not experiment.methods[method].needs_teacher:
                continue
            steps[method] = compare(experiment, pair, method, source, asked)
            figures = "  ".join(f"{name} {value:.2f}" for name, value in steps[method].items())
            print(f"{pair} {source:7} {method:17} {figures}", flush=True)
        if {"kd_tlcutmix", "kd_tlcutmix_pick"} <= steps.keys():
            slower = steps["kd_tlcutmix"]["images_per_second"] / steps["kd_tlcutmix_pick"]["images_per_second"]
            print(f"{pair} {source:7} pick takes {slower:.2f} times as long as TLCutMix", flush=True)
    keep(asked.json, peak_gflops=asked.peak / 1e9, steps=found)


if __name__ == "__main__":
    if not MALLOC_ENV.keys() <= os.environ.keys():  # as a run has it, and so both steps
        os.execve(sys.executable, [sys.executable, *sys.argv], MALLOC_ENV | os.environ)
    main()
