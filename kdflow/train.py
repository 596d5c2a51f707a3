"""Training: one run from its seed to its record."""

from __future__ import annotations

import fcntl
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import torch
from torch import nn

from kdflow import checkpoint, distributed, record
from kdflow.checkpoint import Progress
from kdflow.config import RunSettings
from kdflow.data import Loaded, load
from kdflow.epoch_plan import draw_plan
from kdflow.errors import UserError
from kdflow.evaluate import accuracy
from kdflow.features import asking
from kdflow.feed import InMemory
from kdflow.job import Job
from kdflow.logits import Online, Source
from kdflow.models import create_model, load_weights, save_weights
from kdflow.progress import Emit, Finished, Note, Update
from kdflow.step import Done, Learner, Step, new_learner

REPORT_EVERY = 0.5  # seconds between two progress updates


def run_job(job: Job, emit: Emit) -> None:
    """Train one model from its seed, going on from its checkpoint if there is one; write weights and log."""
    device = pick_device(job.compute.device, distributed.place(alone=job.place))
    torch.set_num_threads(job.compute.threads)
    run = job.run
    data = load(job.dataset, run.train_images, device)
    teacher, teacher_sha256 = None, None
    if job.teacher is not None:
        assert run.teacher is not None
        model, teacher_sha256 = load_teacher(job.teacher, run, device)
        teacher = Online(asking(run.teacher, model, with_features=run.method.loss is not None))
    code = record.code()
    where = record.machine(_device_name(device), job.compute.threads, distributed.processes())
    # What digits depend on. A run goes on with as many processes as it had, on any card of the same kind.
    identity = (run.sha256, data.sha256, teacher_sha256, code.sha256, where.device, where.threads, where.processes)
    key = hashlib.sha256("/".join(map(str, identity)).encode()).hexdigest()
    with _only_one(job.scratch / key[:16], lambda text: emit(Note(job.name, text))) as folder:
        learner = new_learner(run, data.train.labels)
        progress = fit(job.name, run, data, learner, teacher, folder / "checkpoint.safetensors", key, emit)
    if distributed.rank() > 0:
        return
    weights_sha256 = save_weights(learner.student, job.weights)
    images = run.train_images * run.training.epochs
    log = record.RunLog(
        name=job.name,
        settings=run,
        settings_sha256=run.sha256,
        budget=job.budget,
        dataset_sha256=data.sha256,
        teacher_sha256=teacher_sha256,
        weights_sha256=weights_sha256,
        curve=progress.curve,
        code=code,
        machine=where,
        timing=record.Timing(
            started=progress.started,
            seconds=progress.seconds,
            images_per_second=images / progress.seconds,
            resumed=progress.resumed,
        ),
    )
    record.write(job.log, log)
    emit(Finished(job.name, folder))


def fit(
    name: str,
    run: RunSettings,
    data: Loaded,
    learner: Learner,
    teacher: Source | None,
    checkpoint_file: Path,
    key: str,
    emit: Emit,
) -> Progress:
    """Train for the epochs that the run's checkpoint has not seen; returns the finished progress.

    Raises:
        UserError: the loss is no longer finite.
    """
    training = run.training
    optimizer = torch.optim.SGD(
        learner.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    step, feed = Step(run, learner, teacher, optimizer), InMemory(data.train, run.views)
    progress = _resume(name, checkpoint_file, learner, optimizer, key, emit)
    steps_per_epoch = math.ceil(len(data.train) / training.batch_size)
    pace = _Pace(name, training.epochs * steps_per_epoch, training.batch_size, emit)
    for epoch in range(len(progress.curve), training.epochs):
        started = time.perf_counter()
        first = epoch * steps_per_epoch
        plan = draw_plan(
            run.seed,
            epoch,
            len(data.train),
            training.batch_size,
            run.image_size,
            run.views,
            run.method.strong,
            data.train.labels.device,
        )
        if teacher is not None:
            teacher.begin(epoch, plan)
        steps, total = list[Done](), torch.zeros((), device=data.train.labels.device)
        for i, batch in enumerate(feed(plan)):
            steps.append(step(batch, run.learning_rate(first + i, steps_per_epoch)))
            total += steps[-1].loss * len(batch.labels)
            pace.steps_done(first + i + 1, progress.curve)
        _check_finite(name, run, epoch, steps)
        if teacher is not None:
            teacher.end()
        loss, lr = total.item() / len(data.train), run.learning_rate(first, steps_per_epoch)
        test_now = (epoch + 1) % training.test_every == 0 or epoch + 1 == training.epochs
        top1 = accuracy(learner.student, data.test, run.views).top1 if test_now else None
        point = record.Epoch(epoch=epoch + 1, lr=lr, loss=loss, top1=top1, pick_ratio=_pick_ratio(steps))
        seconds = progress.seconds + time.perf_counter() - started
        progress = progress.model_copy(update={"curve": (*progress.curve, point), "seconds": seconds})
        if distributed.rank() == 0:
            checkpoint.save(checkpoint_file, learner, optimizer, progress)
        pace.epoch_done(first + steps_per_epoch, progress.curve)
    return progress


def _check_finite(name: str, run: RunSettings, epoch: int, steps: list[Done]) -> None:
    """Look at an epoch's losses at its end: a look at every step would make the device wait for each."""
    wrong = torch.stack([done.loss for done in steps]).isfinite().logical_not().nonzero().flatten().tolist()
    if wrong:
        step = epoch * len(steps) + wrong[0]
        kept = f"of epoch {epoch}" if epoch else "none"
        raise UserError(
            f"{name}: the loss is {steps[wrong[0]].loss.item()} at step {step + 1} (epoch {epoch + 1}), learning rate "
            f"{run.learning_rate(step, len(steps)):g}; last checkpoint: {kept}"
        )


def _pick_ratio(steps: list[Done]) -> float | None:
    picked = [done.pick_ratio for done in steps if done.pick_ratio is not None]
    return torch.stack(picked).mean().item() if picked else None


def load_teacher(weights: Path, run: RunSettings, device: torch.device) -> tuple[nn.Module, str]:
    """The run's teacher in eval mode, without gradients, and the SHA-256 of its file."""
    assert run.teacher is not None
    model = create_model(run.teacher.name, run.teacher.model, run.classes, run.image_size)
    sha256 = load_weights(model, weights)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False), sha256


def pick_device(name: str, place: int = 0) -> torch.device:
    """The device called `name`; auto takes a GPU where there is one, and deals several out by `place`.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        return card(place, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"params.yaml: compute.device: {name}: {str(error).splitlines()[0]}") from None
    return torch.device(name)


def card(place: int, cards: int) -> torch.device:
    """The card of the run in `place` (0, 1, ...) of those side by side: in turn, several to a card if need be."""
    return torch.device(f"cuda:{place % cards}" if cards else "cpu")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _resume(
    name: str, file: Path, learner: Learner, optimizer: torch.optim.Optimizer, key: str, emit: Emit
) -> Progress:
    """From the checkpoint, or the one before if that is damaged, or from the first epoch."""
    for candidate in (file, checkpoint.before(file)):
        try:
            progress = checkpoint.load(candidate, learner, optimizer, key)
        except ValueError as error:
            emit(Note(name, f"{error}; it is left out"))
            continue
        if progress is not None:
            emit(Note(name, f"going on after epoch {len(progress.curve)}"))
            return progress
    return Progress(run=key, started=datetime.now(UTC).isoformat(timespec="seconds"))


@contextmanager
def _only_one(folder: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """Hold a run's scratch folder: a second process that trains the same run waits, then goes on from there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        if distributed.rank() == 0 and not _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            tell("another process trains this run: waiting for it")
            _locked(lock, fcntl.LOCK_EX)
        distributed.wait_for_all()
        yield folder


def _locked(lock: TextIO, how: int) -> bool:
    try:
        fcntl.flock(lock, how)  # let go when the process ends, however it ends
    except BlockingIOError:
        return False
    return True


class _Pace:
    """Measures a run's speed and reports it, without asking the device for anything."""

    def __init__(self, name: str, steps: int, batch_size: int, emit: Emit) -> None:
        self.name, self.steps, self.batch_size, self.emit = name, steps, batch_size, emit
        self.began: tuple[float, int] | None = None
        self.reported = -math.inf

    def steps_done(self, done: int, curve: tuple[record.Epoch, ...]) -> None:
        """Report when it is time."""
        now = time.perf_counter()
        self.began = self.began or (now, done)
        if done < self.steps and now - self.reported >= REPORT_EVERY:
            self._report(now, done, curve)

    def epoch_done(self, done: int, curve: tuple[record.Epoch, ...]) -> None:
        """Report every epoch's end."""
        self._report(time.perf_counter(), done, curve)

    def _report(self, now: float, done: int, curve: tuple[record.Epoch, ...]) -> None:
        began, first = self.began or (now, done)
        speed = (done - first) / (now - began) if now > began else 0.0  # steps a second
        self.reported = now
        self.emit(
            Update(
                name=self.name,
                done=done,
                steps=self.steps,
                epoch=len(curve),
                loss=curve[-1].loss if curve else None,
                top1=next((point.top1 for point in reversed(curve) if point.top1 is not None), None),
                images_per_second=speed * self.batch_size,
                seconds_left=(self.steps - done) / speed if speed else None,
            )
        )
