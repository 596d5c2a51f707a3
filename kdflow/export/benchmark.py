"""Latency and throughput of exported files, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdflow.config import Settings
from kdflow.core.errors import UserError
from kdflow.export.formats import load_exported
from kdflow.export.latency import BATCH_SIZES, ROUNDS, median_latency

__all__ = ["BATCH_SIZES", "ROUNDS", "Result", "benchmark"]


class Result(Settings):
    """The median latency of one batch in milliseconds; `relative_speed` is relative to the first file."""

    file: str
    model: str
    precision: str
    file_bytes: int
    batch_size: int
    latency_ms: float
    images_per_second: float
    relative_speed: float


def benchmark(
    files: Sequence[Path], batch_sizes: Sequence[int], threads: int, *, trusted: bool = False
) -> list[Result]:
    """Measure exported files in turns, so that a busy machine slows all of them alike.

    Args:
        files: files that `kdflow export` wrote, for images of one size.
        batch_sizes: the numbers of images in a batch.
        threads: CPU threads.
        trusted: run .pt2 files, which are programs and may run any code.

    Raises:
        UserError: a file cannot be used, or the files are for images of other sizes.
    """
    runners, cards = {}, {}
    for file in files:
        cards[str(file)], runners[str(file)] = load_exported(file, threads, trusted=trusted)
    sizes = {card.settings.image_size for card in cards.values()}
    if len(sizes) > 1:
        raise UserError(f"FILE: the files are for images of {sorted(sizes)} px; compare files for one size")
    results = []
    for batch_size in dict.fromkeys(batch_sizes):
        latency = median_latency(runners, min(sizes), batch_size)
        first = latency[str(files[0])]
        for name, milliseconds in ((name, latency[name]) for name in runners):
            result = Result(
                file=name,
                model=cards[name].settings.architecture,
                precision=cards[name].precision,
                file_bytes=Path(name).stat().st_size,
                batch_size=batch_size,
                latency_ms=milliseconds,
                images_per_second=1000 * batch_size / milliseconds,
                relative_speed=first / milliseconds,
            )
            results.append(result)
    return results
