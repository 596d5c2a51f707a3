"""The stage that trains the teacher, or takes its weights from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow.config import Experiment, RunSettings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.pipeline import TEACHER_CLASSES, TEACHER_TOLERANCE
from kdflow.pipeline.train import check_last_batch, check_students, train
from kdflow.teachers.initial_weights import fetch, recorded_normalisation, training_record, with_initial_weights
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import Accuracy, Budget, RunLog, TeacherRecord

if TYPE_CHECKING:
    from torch import nn

    from kdflow.data import Images


def make_teacher(
    experiment: Experiment, dataset: Path, out: Path, work_dir: Path, project: Path = Path(), seed: int = 0
) -> None:
    """Train the teacher, or take its weights from a file, and evaluate it on the test set.

    Writes its weights, its record and its class for each test image to `out`. If the file is the one in `out`, it is
    evaluated again and kept, with its origin. The budget of weights from a file is taken from the record beside it, if
    kdflow has trained them. Paths in the settings are relative to `project`. `seed` is that of its training. Members of
    an ensemble are made one after the other, each in its folder of `out`.

    Raises:
        UserError: weights from a file measure more than `TEACHER_TOLERANCE` below their expected accuracy.
    """
    experiment = with_initial_weights(experiment, project)
    check_students(experiment)  # before hours of training
    members = experiment.members()
    if not members:
        _make_model(experiment, dataset, out, work_dir, project, seed)
        return
    for index, (member, member_seed) in enumerate(members):
        _make_model(member, dataset, member_folder(out, index), work_dir, project, member_seed)
    make_ensemble(experiment, dataset, out)


def member_folder(out: Path, index: int) -> Path:
    """Return the folder of a member of the ensemble in `out`."""
    return out / "members" / str(index)


def _make_model(experiment: Experiment, dataset: Path, out: Path, work_dir: Path, project: Path, seed: int) -> None:
    """Make a teacher that is one model."""
    from kdflow.data import load
    from kdflow.models import convert_weights, create_model, load_exact, save_weights
    from kdflow.pipeline import class_order
    from kdflow.training.device import pick_device

    given = experiment.params.teacher_weights
    run = experiment.teacher_run(seed)
    weights = out / "model.safetensors"
    model = create_model(run.architecture, run.model, run.classes, run.image_size)
    source, order, normalisation = weights, None, None
    if given.file is None:
        origin = _train(experiment, run, dataset, out, work_dir)
        load_exact(model, weights)
    else:
        source = project / files.expand_home(given.file)
        mapped = convert_weights.load_any_format(model, source, given.sha256)
        origin = "; ".join(filter(None, (f"weights from a file, sha256 {given.sha256}", mapped.summary)))
        normalisation = recorded_normalisation(experiment, source, given.sha256)
        run = experiment.model_copy(update={"teacher_normalisation": normalisation}).teacher_run(seed)
    keep = source.resolve() == weights.resolve()
    if given.file is not None and keep and (out / "record.json").is_file():
        kept = record.read_record(out / "record.json", TeacherRecord)
        origin, order = kept.source, kept.class_order
    device = pick_device(experiment.params.compute.device)
    few = min(run.train_images, class_order.IMAGES_PER_CLASS * run.classes)
    data = load(dataset, few, device, experiment.params.compute.resolved_workers)
    model = model.to(device)
    if not keep:
        order, note = class_order.set_class_order(model, given.classes, data, run)
        origin = "; ".join(filter(None, (origin, note)))
    accuracy, classes = _evaluate(model, data.test, run)
    if given.top1 is not None and accuracy.top1 < given.top1 - TEACHER_TOLERANCE:
        raise UserError(
            f"{source}: measures {accuracy.top1:.2f} % top-1, expected {given.top1:.2f} "
            f"(at most {TEACHER_TOLERANCE} lower)"
        )
    result = TeacherRecord(
        architecture=run.architecture,
        source=origin,
        sha256=files.sha256(weights) if keep else save_weights(model, weights),
        accuracy=accuracy,
        budget=_recorded_budget(source, given.sha256) if given.file else record.make_budget(run, experiment.dataset),
        class_order=order,
        normalisation=normalisation,
    )
    _write(result, classes, out)


def make_ensemble(experiment: Experiment, dataset: Path, out: Path) -> None:
    """Put the finished members of an ensemble into one file of weights, and evaluate it on the test set."""
    from kdflow.data import load
    from kdflow.models import create_model, load_exact, save_weights
    from kdflow.training.device import pick_device

    run, compute = experiment.teacher_run(), experiment.params.compute
    ensemble = create_model(run.architecture, run.model, run.classes, run.image_size)
    members = []
    for index in range(len(run.model.members)):
        folder = member_folder(out, index)
        members.append(record.read_record(folder / "record.json", TeacherRecord))
        load_exact(ensemble.get_submodule(f"members.{index}"), folder / "model.safetensors", members[-1].sha256)
    if any(member.normalisation is not None for member in members):
        raise UserError("teacher_weights.members: trained with another mean and std than these images have; train them")
    device = pick_device(compute.device)
    test = load(dataset, run.train_images, device, compute.resolved_workers).test
    accuracy, classes = _evaluate(ensemble.to(device), test, run)
    reduced = [member.budget for member in members if member.budget_note]
    result = TeacherRecord(
        architecture=run.architecture,
        source="; ".join(dict.fromkeys(f"{member.architecture} {member.source}" for member in members)),
        sha256=save_weights(ensemble, out / "model.safetensors"),
        accuracy=accuracy,
        budget=reduced[0] if reduced else members[0].budget,
        members=tuple(members),
    )
    _write(result, classes, out)


def _evaluate(model: nn.Module, test: Images, run: RunSettings) -> tuple[Accuracy, list[int]]:
    """Return the accuracy of a teacher on the test images, and its class for each."""
    from kdflow.training.evaluate import predict_logits, topk_accuracy

    logits = predict_logits(model, test, run.base_view)
    return topk_accuracy(logits, test), logits.argmax(1).tolist()


def _write(result: TeacherRecord, classes: list[int], out: Path) -> None:
    files.write_text(out / TEACHER_CLASSES, json.dumps(classes) + "\n")
    record.write_record(out / "record.json", result)
    print(f"teacher {result.architecture}: {result.accuracy.top1:.2f} % top-1 on {len(classes):,} test images")


def _recorded_budget(weights: Path, sha256: str | None) -> Budget | None:
    """Return the budget that the record beside a student's or teacher's weights states; None without such a record."""
    made = training_record(weights, sha256)
    return None if made is None else made.budget


def _train(experiment: Experiment, run: RunSettings, dataset: Path, out: Path, work_dir: Path) -> str:
    """Train the teacher; return its origin, with its initial weights."""
    compute, found = experiment.params.compute, experiment.initial.get("teacher")
    check_last_batch(run)
    job = Job(
        name=f"seed {run.seed}",
        run=run,
        budget=record.make_budget(run, experiment.dataset),
        dataset=dataset,
        teacher=None,
        views_store=None,
        weights=out / "model.safetensors",
        log=out / "training.json",
        work_dir=work_dir,
        compute=compute,
        initial=None if found is None else fetch(found),
    )
    train(f"teacher {run.architecture}", [job], compute)
    initial = record.read_record(job.log, RunLog).initial
    if run.initial is None or initial is None:
        return "trained in this project"
    return f"trained in this project from {run.initial.source}, sha256 {initial.sha256}; {initial.head}"
