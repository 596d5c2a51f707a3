"""How much faster a training step is than one written in the usual way, doing the same work.

    python benchmarks/step.py [--pair resnet56_to_resnet20] [--methods ce kd kd_tlcutmix kd_tlcutmix_pick] [--rounds 7]

The reference reads images one by one through PIL and a DataLoader, asks the teacher for x and for the views apart,
asks it again for the views that were picked, and leaves all layouts as torch makes them. Both start from the same
weights and see the same crops, flips and boxes, so their first losses must agree within 1e-5; they take turns, so
that a busy machine slows both. Images are noise: speed does not depend on what they show.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import keep, told
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from kdflow import config
from kdflow.config import Experiment, RunSettings
from kdflow.data import ImageSet
from kdflow.epoch_plan import Row, draw_plan
from kdflow.feed import InMemory
from kdflow.logits import Online
from kdflow.models import create_model
from kdflow.step import Step, new_learner
from kdflow.train import extractor

ROOT = Path(__file__).parents[1]
IMAGES = 2048
CPU = torch.device("cpu")


class Usual(Dataset[tuple[Tensor, int]]):
    """Images as files would give them: cropped, flipped and normalised one by one."""

    def __init__(self, images: ImageSet, run: RunSettings, rows: list[Row]) -> None:
        self.pictures = [Image.fromarray(image) for image in images.images.permute(0, 2, 3, 1).numpy()]
        self.labels, self.views = images.labels.tolist(), run.views
        self.index, self.shift, self.flip = (
            torch.cat([getattr(row, name) for row in rows]).tolist() for name in ("index", "shift", "flip")
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """The image at a place of the epoch's order, and its label."""
        (top, left), picture = self.shift[place], self.pictures[self.index[place]]
        padded = ImageOps.expand(picture, self.views.crop)
        cut = padded.crop((left, top, left + picture.width, top + picture.height))
        x = pil_to_tensor(ImageOps.mirror(cut) if self.flip[place] else cut).float() / 255
        return normalize(x, list(self.views.mean), list(self.views.std)), self.labels[self.index[place]]


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

    def __call__(self, x: Tensor, labels: Tensor, row: Row) -> float:
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


def settings(experiment: Experiment, pair: str, method: str) -> RunSettings:
    """A run of the pair on CIFAR-100's settings."""
    names = experiment.pairs[pair]
    changed = {"dataset": "cifar100", "teacher": names.teacher, "student": names.student, "train_images": IMAGES}
    params = experiment.params.model_copy(update=changed)
    return experiment.model_copy(update={"params": params}).student_run(method, 0)


def teacher_of(experiment: Experiment, name: str) -> nn.Module:
    """Fresh weights will do."""
    torch.manual_seed(1)
    return create_model(name, experiment.models[name], 100, 32).eval().requires_grad_(False)


def compare(experiment: Experiment, pair: str, method: str, rounds: int, per_round: int) -> dict[str, float]:
    """Both steps in turn; images a second, and the median of the rounds' ratios."""
    run = settings(experiment, pair, method)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 32, 32, 3), generator=generator, dtype=torch.uint8)
    images = ImageSet(pixels.permute(0, 3, 1, 2), torch.randint(100, (IMAGES,), generator=generator))
    rows = list(draw_plan(0, 0, IMAGES, run.training.batch_size, 32, run.views, run.method.strong, CPU))
    teacher = teacher_of(experiment, experiment.pairs[pair].teacher)
    learner = new_learner(run, images.labels)
    student = create_model(run.architecture, run.model, 100, 32)
    student.load_state_dict(learner.student.state_dict())
    training = run.training
    optimizer = torch.optim.SGD(learner.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
    source = None
    if run.teacher is not None:
        source = Online(extractor(run, teacher.to(memory_format=torch.channels_last)))
    step, feed = Step(run, learner, source, optimizer), InMemory(images, run.views)
    reference = Reference(run, student.train(), teacher_of(experiment, experiment.pairs[pair].teacher))
    batches = iter(DataLoader(Usual(images, run, rows), run.training.batch_size))

    times: list[tuple[float, float]] = []
    steps = iter(rows)
    for _ in range(rounds + 1):  # the first warms up
        mine = [next(steps) for _ in range(per_round)]
        ours, our_losses = timed(lambda mine=mine: [step(feed.batch(row), training.lr).loss.item() for row in mine])
        usual, losses = timed(lambda mine=mine: [reference(*next(batches), row) for row in mine])
        if not times:
            np.testing.assert_allclose(our_losses[:1], losses[:1], rtol=1e-5)
        times.append((ours / per_round, usual / per_round))
    ours, usual = (statistics.median(column) for column in zip(*times[1:], strict=True))
    ratio = statistics.median(b / a for a, b in times[1:])
    size = run.training.batch_size
    return {"images_per_second": size / ours, "reference": size / usual, "ratio": ratio}


def timed(work: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Seconds that it takes, and what it returns."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56_to_resnet20")
    parser.add_argument("--methods", nargs="+", default=["ce", "kd", "kd_tlcutmix", "kd_tlcutmix_pick"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    experiment = config.load(ROOT)
    print(f"{asked.pair}, batch 64 at 32 px, 1 thread; {told()}")
    found: dict[str, dict[str, float]] = {}
    for method in asked.methods:
        found[method] = compare(experiment, asked.pair, method, asked.rounds, asked.steps)
        figures = "  ".join(f"{name} {value:.2f}" for name, value in found[method].items())
        print(f"{method:20} {figures}", flush=True)
    keep(asked.json, pair=asked.pair, steps=found)


if __name__ == "__main__":
    main()
