"""How long exported models take, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from kdflow.export.formats import Runner

BATCHES = (1, 64)
ROUNDS = 15
SHORTEST = 0.05  # seconds of a round: a single call of a small model is shorter than what the clock and others disturb


def median_latency(models: Mapping[str, Runner], image_size: int, batch: int) -> dict[str, float]:
    """Median milliseconds of one batch; the models take turns, so that a busy machine slows all of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
    calls = {name: _warmed(run, images) for name, run in models.items()}
    found: dict[str, list[float]] = {name: [] for name in models}
    for i in range(ROUNDS):
        for name in sorted(models, reverse=i % 2 == 1):
            found[name].append(_seconds(models[name], images, calls[name]))
    return {name: 1000 * statistics.median(seconds) for name, seconds in found.items()}


def _warmed(run: Runner, images: torch.Tensor) -> int:
    """Warm up; how many calls a round has."""
    _seconds(run, images, 2)
    return max(1, round(SHORTEST / _seconds(run, images, 1)))


def _seconds(run: Runner, images: torch.Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run(images)
    return (time.perf_counter() - start) / calls
