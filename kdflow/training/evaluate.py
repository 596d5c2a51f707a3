"""Accuracy on the test set, and agreement with the teacher."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from kdflow.config import BaseView
from kdflow.data import Images
from kdflow.methods.views import channel_mean_std, normalise
from kdflow.training.distributed import all_gather_rows, shard
from kdflow.training.record import Accuracy

BATCH = 128  # small enough for the activations to fit into the cache of a CPU


def predict_logits(model: nn.Module, images: Images, base_view: BaseView) -> Float[Tensor, "n classes"]:
    """Return the logits of all images in eval mode; the mode of the model is restored afterwards."""
    was_training = model.training
    model.eval()
    mean, std = channel_mean_std(base_view, images.labels.device)
    batches = images.for_testing(BATCH, base_view, shard(len(images)))
    with torch.inference_mode():
        logits = [model(normalise(batch, mean, std)) for batch in batches]
    model.train(was_training)
    return all_gather_rows(torch.cat(logits), len(images))


def accuracy(model: nn.Module, images: Images, base_view: BaseView) -> Accuracy:
    """Return the top-1 and top-5 accuracy of a model in percent."""
    return topk_accuracy(predict_logits(model, images, base_view), images)


def topk_accuracy(logits: Float[Tensor, "n classes"], images: Images) -> Accuracy:
    """Return the top-1 and top-5 accuracy of logits in percent."""
    hits = _hits(logits, images)
    top1, top5 = hits[:, 0].sum().item(), hits.sum().item()
    return Accuracy(top1=100 * top1 / len(images), top5=100 * top5 / len(images))


def correct_images(logits: Float[Tensor, "n classes"], images: Images) -> list[bool]:
    """Return whether the most likely class of each image is the right one, as in `topk_accuracy`."""
    return list(_hits(logits, images)[:, 0].tolist())


def _hits(logits: Float[Tensor, "n classes"], images: Images) -> Bool[Tensor, "n k"]:
    """Return whether each of the at most five most likely classes is the right one, most likely first."""
    return logits.topk(min(5, logits.shape[1])).indices == images.labels[:, None]


def agreement(logits: Float[Tensor, "n classes"], teacher_classes: Int64[Tensor, " n"]) -> float:
    """Return the percentage of images for which student and teacher predict the same class."""
    return 100 * (logits.argmax(1) == teacher_classes).double().mean().item()
