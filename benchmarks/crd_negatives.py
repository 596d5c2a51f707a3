"""Benchmark of CRD's negatives: drawn for a whole batch, against image by image as in the authors' loader.

    python benchmarks/crd_negatives.py [--reference permutation] [--images 50000] [--classes 100] ...

Both run in turn, on one thread; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from kdflow.methods.losses.crd import NegativeSampler

# All draw `count` of `candidates` without replacement.
REFERENCES = {
    "loader": lambda count, candidates, _: np.random.choice(
        candidates, count, replace=False
    ),  # as in the authors' loader
    "permutation": lambda count, candidates, generator: generator.permutation(candidates)[:count],
    "choice": lambda count, candidates, generator: generator.choice(candidates, count, replace=False, shuffle=False),
}


def milliseconds(work: Callable[[], object]) -> float:
    """Return the time of one call, in milliseconds."""
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", choices=REFERENCES, default="loader")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()

    torch.set_num_threads(1)
    generator, numpy_generator = torch.Generator().manual_seed(0), np.random.default_rng(0)
    labels = torch.arange(args.images) % args.classes
    sampler = NegativeSampler(labels, args.negatives, replacement=False)
    candidates = [np.flatnonzero(labels.numpy() != label) for label in range(args.classes)]
    reference = REFERENCES[args.reference]

    times: list[tuple[float, float]] = []
    for _ in range(args.rounds + 1):  # the first warms up
        index = torch.randint(args.images, (args.batch,), generator=generator)
        batch_labels = labels[index].tolist()
        one_by_one = milliseconds(
            lambda batch=batch_labels: [reference(args.negatives, candidates[y], numpy_generator) for y in batch]
        )
        times.append((one_by_one, milliseconds(lambda index=index: sampler(index, generator))))
    slow, fast = zip(*times[1:], strict=True)
    ratio = statistics.median(a / b for a, b in times[1:])
    print(f"{platform.node()} {platform.machine()} torch={torch.__version__} threads={torch.get_num_threads()}")
    print(f"{args.images} images, {args.classes} classes, batch {args.batch}, {args.negatives} negatives")
    print(f"{args.reference}, image by image: {statistics.median(slow):.2f} ms")
    print(f"kdflow, the batch at once: {statistics.median(fast):.2f} ms")
    print(f"ratio: {ratio:.1f}")


if __name__ == "__main__":
    main()
