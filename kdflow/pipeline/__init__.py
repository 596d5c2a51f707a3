"""What the stages do: each function reads the outputs of earlier stages and writes its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow.config import Compute, Experiment, PreparedDataset, RunSettings, Settings, UserFolder, choices, unknown_name
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.core.progress import Display, StoreMeter
from kdflow.launch import parallel_runs, torchrun
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import MeanStd, RunLog, RunRecord, TeacherRecord, mean_std

if TYPE_CHECKING:
    from torch import Tensor

VIEWS_STORE, TEACHER_CLASSES = "views.h5", "teacher_classes.json"
TEACHER_TOLERANCE = 0.5  # percentage points that a teacher's weights may measure below what is expected of them


def work_dir() -> Path:
    """Where unfinished work is kept: in the project, also when DVC runs an experiment in a copy of it (`--temp`)."""
    return Path(os.environ.get("DVC_ROOT", "")) / ".kdflow"


def prepare(experiment: Experiment, out: Path, downloads: Path, note: Path | None = None) -> PreparedDataset:
    """Write the dataset in hand to `out`, and what is to be known of it to `note`."""
    from kdflow import data

    params = experiment.params
    if isinstance(params.dataset, UserFolder):
        from kdflow.data import user_folder  # which brings all of torchvision

        found = user_folder.prepare(params.dataset, experiment.user_folder, out)
    else:
        dataset = experiment.dataset
        assert dataset.base_view is not None
        assert dataset.training is not None
        where = None if params.data_folder is None else Path(params.data_folder).expanduser()
        sha256 = data.prepare(params.dataset, dataset.data, where, downloads, out, params.train_images)
        found = PreparedDataset(
            name=params.dataset,
            source=params.dataset,
            data=dataset.data,
            base_view=dataset.base_view,
            training=dataset.training,
            demo=dataset.demo,
            sha256=sha256,
            class_names=tuple(data.class_names(out)),
        )
    if note is not None:
        record.write_record(note, found)
    counts = f"{found.data.train_images:,} training and {found.data.test_images:,} test images"
    print(f"{out}: {counts}, sha256 {found.sha256[:12]}...")
    return found


def teacher(experiment: Experiment, dataset: Path, out: Path, scratch: Path) -> None:
    """Train the teacher, or take its weights from a file; measure it.

    Writes weights, record and its classes of the test images to `out`.

    Raises:
        UserError: weights from a file measure more than `TOLERANCE` below what is expected of them.
    """
    from kdflow.data import load
    from kdflow.models import convert_weights, create_model, load_exact, save_weights
    from kdflow.training.device import pick_device
    from kdflow.training.evaluate import predict_logits, topk_accuracy

    given = experiment.params.teacher_weights
    run = experiment.teacher_run()
    weights = out / "model.safetensors"
    for method in experiment.params.methods:  # before the teacher takes its hours
        _check_last_batch(experiment.student_run(method, 0))
    if given.file is None:
        _check_last_batch(run)
        job = Job(
            name="seed 0",
            run=run,
            budget=record.make_budget(run, experiment.dataset),
            dataset=dataset,
            teacher=None,
            views_store=None,
            weights=weights,
            log=out / "training.json",
            work_dir=scratch,
            compute=experiment.params.compute,
        )
        train(f"teacher {run.architecture}", [job], experiment.params.compute)
    model = create_model(run.architecture, run.model, run.classes, run.image_size)
    source, origin = weights, "trained here"
    if given.file is None:
        load_exact(model, weights)
    else:
        source = Path(given.file).expanduser()
        mapped = convert_weights.load_any_format(model, source, given.sha256)
        origin = "; ".join(filter(None, (f"weights from a file, sha256 {given.sha256}", mapped.summary)))
    device = pick_device(experiment.params.compute.device)
    images = load(dataset, run.train_images, device, experiment.params.compute.resolved_workers).test
    said = predict_logits(model.to(device), images, run.base_view)
    measured = topk_accuracy(said, images)
    if given.top1 is not None and measured.top1 < given.top1 - TEACHER_TOLERANCE:
        raise UserError(
            f"{source}: measures {measured.top1:.2f} % top-1, expected {given.top1:.2f} "
            f"(at most {TEACHER_TOLERANCE} lower)"
        )
    result = TeacherRecord(
        architecture=run.architecture,
        source=origin,
        sha256=files.sha256(weights) if given.file is None else save_weights(model, weights),
        accuracy=measured,
    )
    files.write_text(out / TEACHER_CLASSES, json.dumps(said.argmax(1).tolist()) + "\n")
    record.write_record(out / "record.json", result)
    print(f"teacher {run.architecture}: {measured.top1:.2f} % top-1 on {len(images):,} test images")


def logits(experiment: Experiment, dataset: Path, teacher: Path, out: Path, scratch: Path) -> None:
    """Write to `out` where the students take the teacher's logits from, and the store of all views if it is that."""
    params = experiment.params
    runs = [experiment.student_run(method, 0) for method in params.methods]
    taught = next((run for run in runs if run.teacher is not None), None)
    if taught is not None and taught.logit_source[0] == "views":
        _fill(taught, params.compute.device, dataset, teacher, out / VIEWS_STORE, scratch)
    files.write_text(out / "source.json", json.dumps({"source": params.teacher_logits}) + "\n")


def _fill(run: RunSettings, device_name: str, dataset: Path, teacher: Path, out: Path, scratch: Path) -> None:
    """Ask the teacher about all views, in the scratch folder, where an interrupted attempt is gone on with."""
    from kdflow.data import load
    from kdflow.models.precision import use_tf32
    from kdflow.training.device import pick_device
    from kdflow.training.run import load_teacher, teacher_extractor
    from kdflow.training.teacher_logits import all_views, cache_key

    device = pick_device(device_name)
    use_tf32(run.precision.tf32)
    data = load(dataset, run.train_images, device)
    model, teacher_sha256 = load_teacher(teacher / "model.safetensors", run, device)
    what, dtype = cache_key(run, teacher_sha256, data.sha256), run.logit_source[1]
    key = hashlib.sha256(json.dumps([what, dtype]).encode()).hexdigest()
    with (
        Display("logits") as display,
        files.exclusive_folder(scratch / "views" / key[:16], "this store", print) as folder,
    ):
        pace = StoreMeter(len(data.train), display)
        all_views.fill(
            folder / VIEWS_STORE, teacher_extractor(run, model).forward, data.train, run, dtype, what, pace.done
        )
        with files.atomic_write(out) as beside:
            shutil.move(folder / VIEWS_STORE, beside)
        shutil.rmtree(folder)
    print(f"{out}: {len(data.train) * all_views.views_per_image(run.base_view):,} views, {dtype}")


def distill(
    experiment: Experiment,
    method: str,
    dataset: Path,
    teacher: Path | None,
    logits: Path | None,
    out: Path,
    scratch: Path,
) -> None:
    """Distil the student by `method` from every seed; write weights and log of each to `out`."""
    train(method, jobs(experiment, method, dataset, teacher, logits, out, scratch), experiment.params.compute)


def jobs(
    experiment: Experiment,
    method: str,
    dataset: Path,
    teacher: Path | None,
    logits: Path | None,
    out: Path,
    scratch: Path,
) -> list[Job]:
    """The runs of `method`, one per seed.

    `teacher` and `logits` are the outputs of their stages; None for methods and settings that need none.
    """
    params = experiment.params
    found = []
    _check_last_batch(experiment.student_run(method, 0))
    for place, seed in enumerate(params.seeds):
        run = experiment.student_run(method, seed)
        found.append(
            Job(
                name=f"seed {seed}",
                run=run,
                budget=record.make_budget(run, experiment.dataset),
                dataset=dataset,
                teacher=teacher / "model.safetensors" if teacher and run.teacher is not None else None,
                views_store=logits / VIEWS_STORE if logits and run.logit_source[0] == "views" else None,
                weights=out / f"seed{seed}.safetensors",
                log=out / f"seed{seed}.json",
                work_dir=scratch,
                compute=params.compute,
                run_index=place,
            )
        )
    return found


def _check_last_batch(run: RunSettings) -> None:
    if (run.train_images - 1) % run.training.batch_size == 0:
        from kdflow.training.step import check_last_batch_norm

        check_last_batch_norm(run)


def train(title: str, jobs: list[Job], compute: Compute) -> None:
    """Train all, side by side or each by several processes."""
    if compute.processes_per_run > 1 or torchrun.started_by_torchrun():
        torchrun.run_with_torchrun(title, jobs, compute.processes_per_run)
    else:
        parallel_runs.run_parallel(title, jobs, compute.max_parallel_runs)


def evaluate(
    experiment: Experiment, method: str, dataset: Path, teacher: Path | None, students: Path, out: Path, metrics: Path
) -> list[RunRecord]:
    """Measure the exported students of `method`, write their records to `out` and mean and spread to `metrics`.

    Returns the records. Without a teacher, agreement is not measured.

    Raises:
        UserError: a student's weights are not those that its log speaks of.
    """
    from kdflow.data import load
    from kdflow.models import create_model, load_exact
    from kdflow.training.device import pick_device
    from kdflow.training.evaluate import agreement, predict_logits, topk_accuracy

    device = pick_device(experiment.params.compute.device)
    test = load(dataset, experiment.train_images, device, experiment.params.compute.resolved_workers).test

    taught = None if teacher is None else _answers(teacher / TEACHER_CLASSES, len(test)).to(device)
    records = []
    for seed in experiment.params.seeds:
        log = record.read_record(students / f"seed{seed}.json", RunLog)
        run = log.settings
        model = create_model(run.architecture, run.model, run.classes, run.image_size)
        load_exact(model, students / f"seed{seed}.safetensors", log.weights_sha256)
        logits = predict_logits(model.to(device), test, run.base_view)
        same = None if taught is None else agreement(logits, taught)
        result = RunRecord(**dict(log), final=topk_accuracy(logits, test), best=record.best_epoch(log), agreement=same)
        record.write_record(out / f"seed{seed}.json", result)
        records.append(result)
    summary = summarise(records)
    files.write_text(metrics, summary.model_dump_json(indent=2) + "\n")
    print(f"{method}: {summary.top1} % top-1 (n = {summary.top1.n})")
    return records


def _answers(file: Path, images: int) -> Tensor:
    """The teacher's classes of the test images: asked once, by its stage."""
    import torch

    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; `dvc repro teacher` makes it") from None
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) != images or not all(isinstance(answer, int) for answer in found):
        raise UserError(f"{file}: not the classes of {images} test images; `dvc repro -f teacher` makes it anew")
    return torch.tensor(found)


def disagreement(experiment: Experiment, mix: str, dataset: Path, teacher: Path, out: Path) -> None:
    """Count on which strong views teacher and mixed label disagree; write figures and samples to `out`.

    Raises:
        UserError: there is no such view.
    """
    from kdflow.data import load
    from kdflow.report import disagreement
    from kdflow.training.device import pick_device
    from kdflow.training.run import load_teacher

    if mix not in choices("views"):
        raise unknown_name("mix", mix, choices("views"))
    params = experiment.params
    device = pick_device(params.compute.device)
    run = experiment.student_run("kd", params.seeds[0])
    loaded = load(dataset, run.train_images, device, params.compute.resolved_workers)
    model, _ = load_teacher(teacher / "model.safetensors", run, device)
    taught = experiment.teacher_run()
    if params.teacher_weights.file is not None:  # whoever trained it had a budget of his own
        taught = taught.model_copy(update={"training": experiment.dataset.training})
    budget_note = record.make_budget(taught, experiment.dataset).budget_note
    result, pictures = disagreement.measure(model, loaded, run, mix, budget_note)
    disagreement.write(result, pictures, out)
    print(f"{params.teacher} and {mix}'s label disagree on {result.percent:.1f} % of {result.views:,} views: {out}/")


class Summary(Settings):
    """A method's figures over its seeds, in percent; the best epoch is chosen on the test set, so no result.

    Agreement is the share of test images of which student and teacher say the same class.
    """

    top1: MeanStd
    top5: MeanStd
    best_epoch_top1: MeanStd
    agreement: MeanStd | None


def summarise(records: list[RunRecord]) -> Summary:
    """Mean and spread of the records' results."""
    same = [r.agreement for r in records if r.agreement is not None]
    return Summary(
        top1=mean_std([r.final.top1 for r in records]),
        top5=mean_std([r.final.top5 for r in records]),
        best_epoch_top1=mean_std([r.best.top1 for r in records]),
        agreement=mean_std(same) if same else None,
    )
