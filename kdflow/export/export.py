"""A student leaves: written in a form of `kdflow.formats`, held against the original on real images, and timed."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdflow.config import Settings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.data import Images, ImageSet, Loaded, balanced_order, load
from kdflow.export import latency
from kdflow.export.card import Card, make_card
from kdflow.export.formats import Runner, format_by_name
from kdflow.export.latency import BATCHES, median_latency
from kdflow.export.locate import StudentFiles
from kdflow.models import create_model, load_exact
from kdflow.models.cost import count_cost
from kdflow.training import record
from kdflow.training.evaluate import BATCH, predict_logits

MAX_IMAGES = 1000  # images that a file is verified on
# Of the largest logit: what float32 may differ by when other kernels add in another order.
TOLERANCE = 1e-4


class Verification(Settings):
    """An exported file against the original on test images: logits, and on how many the first class or five differ."""

    images: int
    max_difference: float
    largest_logit: float
    tolerance: float
    top1_differ: int
    top5_differ: int

    def __str__(self) -> str:
        return (
            f"logits of {self.images:,} test images differ by at most {self.max_difference:.1e} "
            f"(the largest is {self.largest_logit:.1f}; tolerance {self.tolerance:.0e} of it); "
            f"top-1 differs on {self.top1_differ}, top-5 on {self.top5_differ}"
        )


class ModelCost(Settings):
    """What a model costs: its file in bytes, parameters, FLOPs of an image, milliseconds by batch size."""

    model: str
    bytes: int
    params: int
    flops: int
    milliseconds: dict[int, float]


class Report(Settings):
    """What is known of an exported file."""

    file: str
    form: str
    sha256: str
    verified: Verification
    student: ModelCost
    teacher: ModelCost | None
    threads: int
    rounds: int
    machine: record.Machine
    card: Card


def report_path(file: Path) -> Path:
    """Where the report of an exported file is."""
    return file.with_name(f"{file.name}.json")


def export(found: StudentFiles, form_name: str, out: Path | None, threads: int) -> tuple[Path, Report]:
    """Write a student in a form, verified and measured; returns the file and what is known of it.

    Args:
        out: the file; None: beside the working directory's files, named after dataset, student, method and seed.

    Raises:
        UserError: the weights are not those of the log, the dataset is another one, or the file does not say what the
            original says; then nothing is left under its name.
    """
    form, run = format_by_name(form_name), found.log.settings
    out = out or Path(f"{run.dataset}-{run.architecture}-{found.weights.parent.name}-seed{run.seed}{form.SUFFIX}")
    if out.suffix != form.SUFFIX:
        raise UserError(f"--out: {out}: a file of {form_name} ends with {form.SUFFIX}")
    for what, file in (("student", found.weights), ("teacher", found.teacher)):
        if file is not None and out.resolve() == file.resolve():
            raise UserError(f"--out: {out}: is the {what} itself")
    if form_name == "safetensors" and out.exists() and form.read(out) is None:
        raise UserError(f"--out: {out}: is there and no export of kdflow, but other weights; they are not written over")
    torch.set_num_threads(threads)
    model = create_model(run.architecture, run.model, run.classes, run.image_size)
    load_exact(model, found.weights, found.log.weights_sha256)
    data = _dataset(found)
    card = make_card(found.log, data.class_names)
    with files.atomic_write(out) as part, tempfile.TemporaryDirectory() as scratch:
        form.write(model.eval(), card, part)
        runs = {"student": form.runner(part, card, threads)}
        verified = verify(model, runs["student"], card, data.test)
        models, sizes = {"student": model}, {"student": part.stat().st_size}
        if found.teacher is not None and run.teacher is not None:
            file = Path(scratch) / f"teacher{form.SUFFIX}"
            taught = run.model_copy(update={"architecture": run.teacher.name, "model": run.teacher.model})
            of_teacher = card.model_copy(update={"settings": taught})
            models["teacher"] = create_model(run.teacher.name, run.teacher.model, run.classes, run.image_size)
            load_exact(models["teacher"], found.teacher, found.log.teacher_sha256)
            form.write(models["teacher"].eval(), of_teacher, file)
            runs["teacher"], sizes["teacher"] = form.runner(file, of_teacher, threads), file.stat().st_size
        costs = _measure(models, sizes, runs, card)
    report = Report(
        file=out.name,
        form=form_name,
        sha256=files.sha256(out),
        verified=verified,
        student=costs["student"],
        teacher=costs.get("teacher"),
        threads=threads,
        rounds=latency.ROUNDS,
        machine=record.machine_info("cpu", threads, 0, 1),
        card=card,
    )
    record.write_record(report_path(out), report)
    return out, report


def _dataset(found: StudentFiles) -> Loaded:
    """The dataset that the student was trained on."""
    data = load(found.dataset, found.log.settings.train_images, torch.device("cpu"), min(8, os.cpu_count() or 1))
    if data.sha256 != found.log.dataset_sha256:
        raise UserError(
            f"{found.dataset}: sha256 is {data.sha256[:12]}..., the student learned {found.log.dataset_sha256[:12]}..."
        )
    return data


def stratified_subset(images: Images, at_most: int) -> Images:
    """At most so many images, the classes in equal shares."""
    if len(images) <= at_most:
        return images
    kept = balanced_order(images.labels.numpy())[:at_most]
    kept.sort()
    if isinstance(images, ImageSet):
        return ImageSet(images.images[torch.from_numpy(kept)], images.labels[torch.from_numpy(kept)])
    return dataclasses.replace(images, files=images.files.take(kept), labels=images.labels[torch.from_numpy(kept)])


def verify(model: nn.Module, run: Runner, card: Card, test: Images) -> Verification:
    """Hold an exported file against the model that it was made of.

    Raises:
        UserError: their logits differ by more than `TOLERANCE` of the largest.
    """
    images, views = stratified_subset(test, MAX_IMAGES), card.settings.base_view
    expected = predict_logits(model, images, views)
    batches = images.for_testing(BATCH, views, slice(0, len(images)))
    found = torch.cat([run(batch) for batch in batches])
    difference = float((found.double() - expected.double()).abs().max())
    largest = float(expected.abs().max())
    verified = Verification(
        images=len(images),
        max_difference=difference,
        largest_logit=largest,
        tolerance=TOLERANCE,
        top1_differ=_differ(found, expected, 1),
        top5_differ=_differ(found, expected, min(5, expected.shape[1])),
    )
    if not difference <= TOLERANCE * max(1.0, largest):  # so that NaN is refused too
        raise UserError(f"not exported: {verified}")
    return verified


def _differ(a: Tensor, b: Tensor, first: int) -> int:
    """Images whose first classes are not the same in the same order."""
    return int((a.topk(first).indices != b.topk(first).indices).any(1).sum())


def _measure(
    models: dict[str, nn.Module], sizes: dict[str, int], runs: dict[str, Runner], card: Card
) -> dict[str, ModelCost]:
    run = card.settings
    times: dict[int, dict[str, float]] = {batch: median_latency(runs, run.image_size, batch) for batch in BATCHES}
    names: dict[str, Any] = {"student": run.architecture, "teacher": run.teacher and run.teacher.name}
    found = {}
    for role, model in models.items():
        cost = count_cost(model, run.image_size)
        found[role] = ModelCost(
            model=str(names[role]),
            bytes=sizes[role],
            params=cost.params,
            flops=cost.flops,
            milliseconds={batch: times[batch][role] for batch in BATCHES},
        )
    return found
