"""Latency of exported models, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch

from kdflow.export.formats import Runner

BATCH_SIZES = (1, 64)
ROUNDS = 15
MIN_ROUND_SECONDS = 0.05  # a round has several calls of a fast model, since one call is too short to time


def median_latency(runners: Mapping[str, Runner], image_size: int, batch_size: int) -> dict[str, float]:
    """Return each model's median latency for one batch, in milliseconds.

    The models take turns in each round, so that a busy machine slows all of them alike.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, 3, image_size, image_size), generator=generator, dtype=torch.uint8)
    calls = {name: _calls_per_round(runner, images) for name, runner in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for i in range(ROUNDS):
        for name in sorted(runners, reverse=i % 2 == 1):
            seconds[name].append(_seconds_per_call(runners[name], images, calls[name]))
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def _calls_per_round(runner: Runner, images: torch.Tensor) -> int:
    """Warm the model up and return how many calls take `MIN_ROUND_SECONDS`."""
    _seconds_per_call(runner, images, 2)
    return max(1, round(MIN_ROUND_SECONDS / _seconds_per_call(runner, images, 1)))


def _seconds_per_call(runner: Runner, images: torch.Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        runner(images)
    return (time.perf_counter() - start) / calls
