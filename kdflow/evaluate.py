"""Accuracy on the test set, and agreement with the teacher."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kdflow.config import Views
from kdflow.data import Images
from kdflow.distributed import of_all, share
from kdflow.record import Accuracy
from kdflow.views import channel_statistics, normalise

BATCH = 128  # small enough for its activations to stay in the cache of a CPU


def predict(model: nn.Module, images: Images, views: Views) -> Float[Tensor, "n classes"]:
    """Logits of all images, the model in eval mode, images normalised and otherwise as `for_testing` gives them.

    The model is left in the mode that it was in.
    """
    was_training = model.training
    model.eval()
    mean, std = channel_statistics(views, images.labels.device)
    mine = images.for_testing(BATCH, views, share(len(images)))
    with torch.inference_mode():
        logits = [model(normalise(batch, mean, std)) for batch in mine]
    model.train(was_training)
    return of_all(torch.cat(logits), len(images))


def accuracy(model: nn.Module, images: Images, views: Views) -> Accuracy:
    """Top-1 and top-5 accuracy of `predict` in percent."""
    return score(predict(model, images, views), images)


def score(logits: Float[Tensor, "n classes"], images: Images) -> Accuracy:
    """Top-1 and top-5 accuracy in percent."""
    hits = logits.topk(min(5, logits.shape[1])).indices == images.labels[:, None]
    top1, top5 = hits[:, 0].sum().item(), hits.sum().item()
    return Accuracy(top1=100 * top1 / len(images), top5=100 * top5 / len(images))


def agreement(logits: Float[Tensor, "n classes"], answers: Int64[Tensor, " n"]) -> float:
    """Share of images, in percent, to which the logits give the same class as `answers`."""
    return 100 * (logits.argmax(1) == answers).double().mean().item()
