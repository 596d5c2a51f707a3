"""The stage that evaluates the students of one method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kdflow.config import Experiment, RunSettings, Settings
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.pipeline import TEACHER_CLASSES
from kdflow.training import record
from kdflow.training.record import MeanStd, RunLog, RunRecord, mean_std

if TYPE_CHECKING:
    from torch import Tensor


def evaluate_students(
    experiment: Experiment, method: str, dataset: Path, teacher: Path | None, students: Path, out: Path, metrics: Path
) -> list[RunRecord]:
    """Evaluate the students of `method` on the test set; write their records to `out` and a summary to `metrics`.

    Returns the records. Without a teacher, agreement is not measured.

    Raises:
        UserError: a student's weights differ from the hash in its log.
    """
    from kdflow.data import load
    from kdflow.models import create_model, load_exact
    from kdflow.training.device import pick_device
    from kdflow.training.evaluate import agreement, correct_images, predict_logits, topk_accuracy

    device = pick_device(experiment.params.compute.device)
    test = load(dataset, experiment.train_images, device, experiment.params.compute.resolved_workers).test
    teacher_classes = None if teacher is None else _teacher_classes(teacher / TEACHER_CLASSES, len(test)).to(device)
    records = []
    for seed in experiment.params.seeds:
        log = record.read_record(students / f"seed{seed}.json", RunLog)
        run = log.settings
        run.check_user_code()
        model = create_model(run.architecture, run.model, run.classes, run.image_size)
        load_exact(model, students / f"seed{seed}.safetensors", log.weights_sha256)
        logits = predict_logits(model.to(device), test, run.base_view)
        result = RunRecord(
            **dict(log),
            final=topk_accuracy(logits, test),
            best=record.best_epoch(log),
            agreement=None if teacher_classes is None else agreement(logits, teacher_classes),
            correct=record.pack_bits(correct_images(logits, test)),
        )
        record.write_record(out / f"seed{seed}.json", result)
        records.append(result)
    summary = summarise(records)
    files.write_text(metrics, summary.model_dump_json(indent=2) + "\n")
    print(f"{method}: {summary.top1} % top-1 (n = {summary.top1.n})")
    return records


def measure_final_test(
    experiment: Experiment, dataset: Path, models: list[tuple[RunSettings, Path]]
) -> tuple[dict[str, float], int]:
    """Return the top-1 accuracy in percent of each file of weights on the test images, and the number of images."""
    from kdflow.data import load
    from kdflow.models import create_model, load_exact
    from kdflow.training.device import pick_device
    from kdflow.training.evaluate import accuracy

    device = pick_device(experiment.params.compute.device)
    test = load(dataset, experiment.train_images, device, experiment.params.compute.resolved_workers).test
    top1 = {}
    for run, weights in models:
        model = create_model(run.architecture, run.model, run.classes, run.image_size)
        load_exact(model, weights)
        top1[str(weights)] = accuracy(model.to(device), test, run.base_view).top1
    return top1, len(test)


def _teacher_classes(file: Path, images: int) -> Tensor:
    """Read the teacher's class for each test image, as its stage has written them."""
    import torch

    try:
        classes = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; run `dvc repro teacher`") from None
    except ValueError:
        classes = None
    if not isinstance(classes, list) or len(classes) != images or not all(isinstance(one, int) for one in classes):
        raise UserError(f"{file}: expected a list of classes for {images} test images; run `dvc repro -f teacher`")
    return torch.tensor(classes)


class Summary(Settings):
    """A method's results over its seeds, in percent.

    `best_epoch_top1` is for comparison only: its epoch is chosen on the test set. `agreement` is the fraction of test
    images for which student and teacher predict the same class.
    """

    top1: MeanStd
    top5: MeanStd
    best_epoch_top1: MeanStd
    agreement: MeanStd | None


def summarise(records: list[RunRecord]) -> Summary:
    """Compute mean and standard deviation of the records' results."""
    agreements = [r.agreement for r in records if r.agreement is not None]
    return Summary(
        top1=mean_std([r.final.top1 for r in records]),
        top5=mean_std([r.final.top5 for r in records]),
        best_epoch_top1=mean_std([r.best.top1 for r in records]),
        agreement=mean_std(agreements) if agreements else None,
    )
