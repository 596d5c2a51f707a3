"""The order of the outputs of a teacher whose weights come from a file.

Projects sort the folders of classes in different ways: as text (0, 1, 10, 2: torchvision and this project), or with
digits as numbers (0, 1, 2, 10: timm). The weights do not contain the order. A teacher with another order is right on
few images, without an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from kdflow.config import RunSettings, TeacherClasses
from kdflow.core.errors import UserError
from kdflow.data import Loaded
from kdflow.training.evaluate import predict_logits

IMAGES_PER_CLASS = 20  # training images that are compared with the teacher's outputs
SIGNIFICANT = 3.0  # standard errors
NAMES = 3  # names of classes in one message


def set_class_order(
    teacher: nn.Module, order: TeacherClasses | None, data: Loaded, run: RunSettings
) -> tuple[tuple[int, ...] | None, str]:
    """Reorder the outputs of a teacher, and warn if another order is clearly better on training images.

    Args:
        teacher: the teacher; its last layer is changed.
        order: the order of its outputs: "natural", "auto", the names of the classes in this order, or None for the
            order of the dataset.
        data: the dataset with the training images to use.
        run: the settings with base view and image size.

    Returns:
        The output of each class, or None if nothing was changed; and a note for the teacher's record.

    Raises:
        UserError: the names differ from the dataset's, or the outputs of this model cannot be reordered.
    """
    logits, labels, class_names = (
        predict_logits(teacher, data.train, run.base_view),
        data.train.labels,
        data.class_names,
    )
    identity, natural = list(range(len(class_names))), natural_order(class_names)
    outputs, note = identity, ""
    if order == "natural":
        outputs, note = natural, "outputs in the natural order of the classes"
    elif isinstance(order, tuple):
        outputs, note = _named_order(order, class_names), "outputs in a given order of the classes"
    better, top1, better_top1 = _better_order(logits[:, outputs], labels)
    counts = f"{better_top1:.1f} % instead of {top1:.1f} % of {len(labels):,} training images"
    if better is not None and order == "auto":
        outputs, note = better, f"outputs in the order that is right on {counts}"
        print(f"teacher: {note}")
    elif better is not None:
        value = "natural" if [outputs[index] for index in better] == natural else "auto"
        warning = f"another order of its outputs is right on {counts}"
        note = "; ".join(filter(None, (note, warning)))
        print(f"warning: teacher: {warning}; --teacher-classes {value} (teacher_weights.classes: {value}) selects it")
    elif order == "auto":
        print("teacher: no other order of its outputs is clearly better")
    if outputs == identity:
        return None, note
    _reorder(teacher, outputs, run.image_size)
    return tuple(outputs), note


def natural_order(class_names: Sequence[str]) -> list[int]:
    """Return the position of each class if the names are sorted with their digits as numbers, as timm does."""
    ranks = sorted(
        range(len(class_names)),
        key=lambda label: [
            (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
            for part in re.split(r"(\d+)", class_names[label].lower())
        ],
    )
    return [ranks.index(label) for label in range(len(ranks))]


def _named_order(names: tuple[str, ...], class_names: Sequence[str]) -> list[int]:
    """Return the position of each class in `names`.

    Raises:
        UserError: `names` are not exactly the dataset's classes.
    """
    if sorted(names) != sorted(class_names):
        unknown, missing = sorted({*names} - {*class_names}), sorted({*class_names} - {*names})
        parts = [f"{len(names)} names for {len(class_names)} classes"] if len(names) != len(class_names) else []
        parts += [
            f"{text} {', '.join(some[:NAMES])}" for text, some in (("unknown", unknown), ("missing", missing)) if some
        ]
        raise UserError(f"teacher classes: must be the names of the dataset's classes: {'; '.join(parts)}")
    return [names.index(name) for name in class_names]


def _better_order(
    logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]
) -> tuple[list[int] | None, float, float]:
    """Return the best order of the outputs if it is clearly better than the present one, and the accuracies of both.

    To find out, the order is fitted to one half of the images and tested on the other half, and the reverse: fitted to
    the same images, some order is always better. The returned order is fitted to all images.
    """
    predicted, true = logits.argmax(1).cpu().numpy(), labels.cpu().numpy()
    half = np.empty(len(true), dtype=bool)  # every second image of each class
    for label in np.unique(true):
        of_class = np.flatnonzero(true == label)
        half[of_class] = np.arange(len(of_class)) % 2 == 0
    right, right_then = predicted == true, np.empty(len(true), dtype=bool)
    for test in (half, ~half):
        order = _best_order(predicted[~test], true[~test], logits.shape[1])
        right_then[test] = predicted[test] == np.array(order)[true[test]]
    gained, lost = int((right_then & ~right).sum()), int((right & ~right_then).sum())
    clear = gained - lost > SIGNIFICANT * math.sqrt(gained + lost)
    best = _best_order(predicted, true, logits.shape[1]) if clear else None
    return best, 100 * float(right.mean()), 100 * float(right_then.mean())


def _best_order(
    predicted: np.ndarray[tuple[int], np.dtype[np.int64]],
    true: np.ndarray[tuple[int], np.dtype[np.int64]],
    classes: int,
) -> list[int]:
    """Return the output of each class for which most images are right."""
    counts = np.eye(classes) / 1e3  # among equally good orders, the present one
    np.add.at(counts, (true, predicted), 1)
    return [int(output) for output in linear_sum_assignment(counts, maximize=True)[1]]


def _reorder(teacher: nn.Module, outputs: list[int], image_size: int) -> None:
    """Permute the rows of the teacher's last layer, so that its output i becomes the present output `outputs[i]`.

    Raises:
        UserError: there is no layer that orders the outputs; the teacher is not changed.
    """
    device = next(teacher.parameters()).device
    images = torch.rand(4, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    training = teacher.training
    teacher.eval()
    with torch.no_grad():
        expected = teacher(images)[:, outputs]
        inverse = torch.tensor(outputs).argsort().tolist()
        for layer in reversed([*teacher.modules()]):
            tensors = [value.data for value in layer.parameters(recurse=False)]
            if not tensors or any(value.shape[:1] != (len(outputs),) for value in tensors):
                continue
            for value in tensors:
                value.copy_(value[outputs])
            if torch.allclose(teacher(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
                teacher.train(training)
                return
            for value in tensors:
                value.copy_(value[inverse])
    raise UserError("teacher classes: the outputs of this model cannot be reordered; save its weights in this order")
