"""Distillation of modules of a program, by the training loop of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdflow.api.images import ImageData, as_images
from kdflow.api.parts import on_meta
from kdflow.api.settings import AS_IT_IS, Layers, architecture, find_method, find_training, run_settings
from kdflow.config import BaseView, Method, RunSettings
from kdflow.core.errors import UserError
from kdflow.core.progress import Display, Event, Note, RunUpdate
from kdflow.data import Images, Loaded
from kdflow.models import save_weights, to_device
from kdflow.models.features import FeatureExtractor, outputs_of_two
from kdflow.training import evaluate
from kdflow.training.device import pick_device
from kdflow.training.loop import fit
from kdflow.training.record import Accuracy, Epoch
from kdflow.training.run import teacher_extractor
from kdflow.training.step import StudentWithLoss, new_loss
from kdflow.training.teacher_logits import Online


@dataclass(frozen=True)
class Distillation:
    """The result of `distill`.

    Attributes:
        student: the trained student, in eval mode.
        settings: everything that determines the numbers, except data, weights and code.
        curve: the records of all epochs.
        accuracy: the student's accuracy on the test images after the last epoch, in percent.
        teacher_accuracy: that of the teacher; None without a teacher.
        agreement: the percentage of test images for which both predict the same class; None without a teacher.
        seconds: seconds of training.
    """

    student: nn.Module
    settings: RunSettings
    curve: tuple[Epoch, ...]
    accuracy: Accuracy
    teacher_accuracy: Accuracy | None
    agreement: float | None
    seconds: float

    def save(self, path: Path | str) -> str:
        """Write the student's weights as safetensors; returns the SHA-256 of the file in hex."""
        return save_weights(self.student, Path(path))


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    train: ImageData,
    test: ImageData,
    *,
    method: str | Method = "kd_tlcutmix_pick",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    training: Mapping[str, object] | None = None,
    view: BaseView | None = None,
    student_layers: Layers | None = None,
    teacher_layers: Layers | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
    on_epoch: Callable[[Epoch], object] | None = None,
    progress: bool = True,
) -> Distillation:
    """Train `student` in place, with the help of `teacher`.

    Both models return logits [b, classes] and are moved to the device. The teacher is used in eval mode.

    Args:
        student: the model to train, from its present weights.
        teacher: the trained model; None if the method needs none.
        train: a map-style dataset of (image, label), whose images are floats as the models take them, or two tensors:
            images [n, 3, size, size], uint8 or float32, and labels [n]. `test` is of the same kind, and only measured.
        method: a name of `list_methods()`, or a `Method`.
        epochs: number of epochs; None: as in recipes/user_folder.yaml, like the next two.
        batch_size, lr: images per step, and the learning rate.
        training: other settings of `Training` by their names, such as `{"weight_decay": 1e-4}`.
        view: random crop, flip and normalisation of images in tensors. Needed for uint8; float32 images are normalised.
        student_layers, teacher_layers: layers of the models, for a method that compares features.
        seed: the seed of the order of the images, and of all views; `device` is auto, cpu, cuda, cuda:1 or mps.
        workers: number of processes that read a dataset; 0 reads in this process.
        on_epoch: called with the record of each epoch; `progress` shows the progress.

    Raises:
        UserError: an argument is wrong, or the loss is not finite.
    """
    place = pick_device(device)
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    settings = find_training({**{key: value for key, value in given.items() if value is not None}, **(training or {})})
    images = [as_images(name, data, view, place, workers) for name, data in (("train", train), ("test", test))]
    student, teacher = to_device(student, place), None if teacher is None else to_device(teacher, place)
    run = run_settings(
        architecture(student, student_layers),
        None if teacher is None else architecture(teacher, teacher_layers),
        find_method(method),
        settings,
        seed,
        train_images=len(images[0]),
        classes=_classes(student, images),
        image_size=images[0].image_size,
        base_view=view or AS_IT_IS,
    )
    with _eval_mode(teacher):
        return _train(run, student, teacher, Loaded(images[0], images[1], [], ""), on_epoch, progress=progress)


def _train(
    run: RunSettings,
    student: nn.Module,
    teacher: nn.Module | None,
    data: Loaded,
    on_epoch: Callable[[Epoch], object] | None,
    *,
    progress: bool,
) -> Distillation:
    learner = StudentWithLoss(student, make_loss(run, student, teacher, data.train.labels), run.training)
    learner.to(data.train.labels.device)
    source = None if teacher is None or run.teacher is None else Online(teacher_extractor(run, teacher))
    with Display("distill") as display:

        def emit(event: Event) -> None:
            if progress and isinstance(event, RunUpdate | Note):
                display.show(event)

        done = fit(f"seed {run.seed}", run, data, learner.train(), source, None, "", emit, on_epoch)
    if learner.exported is not student:
        student.load_state_dict(learner.exported.state_dict())
    student.eval()
    logits, teacher_accuracy, agreement = evaluate.predict_logits(student, data.test, run.base_view), None, None
    if teacher is not None:
        teacher_logits = evaluate.predict_logits(teacher, data.test, run.base_view)
        teacher_accuracy = evaluate.topk_accuracy(teacher_logits, data.test)
        agreement = evaluate.agreement(logits, teacher_logits.argmax(1))
    accuracy = evaluate.topk_accuracy(logits, data.test)
    return Distillation(student, run, done.curve, accuracy, teacher_accuracy, agreement, done.seconds)


def make_loss(
    run: RunSettings, student: nn.Module, teacher: nn.Module | None, labels: torch.Tensor
) -> nn.Module | None:
    """Return the module of the method's extra loss, with initial weights from the seed; None if it has none.

    Raises:
        UserError: a model does not accept the images, or the loss does not support the pair of models.
    """
    models = [(student, run.architecture, run.model)]
    if teacher is not None and run.teacher is not None:
        models.append((teacher, run.teacher.name, run.teacher.model))
    shapes = []
    for model, name, recipe in models:
        with _eval_mode(model), torch.no_grad():
            shapes.append(
                on_meta(outputs_of_two(FeatureExtractor(name, model, recipe), name, run.classes, run.image_size))
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        loss = new_loss(run.method.loss, shapes[0], shapes[-1], labels)
    return None if loss is None else to_device(loss, labels.device)


def _classes(student: nn.Module, images: list[Images]) -> int:
    """Return the number of logits of the student.

    Raises:
        UserError: the images differ in size, or a label is not one of the classes.
    """
    train, test = images
    if train.image_size != test.image_size:
        raise UserError(f"test: images of {test.image_size} px, those of train have {train.image_size}")
    with _eval_mode(student), torch.no_grad():
        x = torch.zeros(2, 3, train.image_size, train.image_size, device=train.labels.device)
        logits = student(x)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise UserError(f"student: expected a tensor of logits [b, classes], got {type(logits).__name__}")
    for name, one in (("train", train), ("test", test)):
        low, high = int(one.labels.min()), int(one.labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise UserError(f"{name}: labels from {low} to {high}; the student has {logits.shape[1]} logits")
    return int(logits.shape[1])


@contextmanager
def _eval_mode(model: nn.Module | None) -> Iterator[None]:
    """Set a model to eval mode, and restore the mode of each of its modules."""
    modes = [] if model is None else [(module, module.training) for module in model.modules()]
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
