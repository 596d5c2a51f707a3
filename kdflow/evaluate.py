"""Accuracy on the test set."""

from __future__ import annotations

import torch
from torch import nn

from kdflow.config import Views
from kdflow.data import ImageSet
from kdflow.record import Accuracy
from kdflow.views import channel_statistics, normalise

BATCH = 128  # small enough for its activations to stay in the cache of a CPU


def accuracy(model: nn.Module, images: ImageSet, views: Views) -> Accuracy:
    """Top-1 and top-5 accuracy in percent, the model in eval mode, images normalised and otherwise as they are.

    The model is left in the mode that it was in.
    """
    was_training = model.training
    model.eval()
    mean, std = channel_statistics(views, images.images.device)
    top1 = top5 = torch.zeros((), device=images.images.device)
    with torch.inference_mode():
        for batch, labels in zip(torch.split(images.images, BATCH), torch.split(images.labels, BATCH), strict=True):
            logits = model(normalise(batch, mean, std))
            hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            top1 = top1 + hits[:, 0].sum()
            top5 = top5 + hits.sum()
    model.train(was_training)
    return Accuracy(top1=100 * top1.item() / len(images), top5=100 * top5.item() / len(images))
