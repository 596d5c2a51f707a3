"""Benchmark of a store of teacher logits: read as a memory map, against the same HDF5 file read through h5py.

    python benchmarks/store.py [--images 5000] [--rounds 5] [--json FILE]

The store has all 162 flips and crops of each image, 100 classes in float16 (CIFAR-100's 50,000 images: 1.6 GB). It is
read in random batches of 64 views, as by a run: from the memory map to float32 tensors. It is compared with h5py's
rows one by one, with h5py's fancy indexing, and with replay, which reads the same number of views in order. They take
turns; the file is in the system's cache, as from the second epoch on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from machine import describe_machine, save_results

from kdflow import config
from kdflow.models.features import FeatureExtractor
from kdflow.training.teacher_logits import Online, store
from kdflow.training.teacher_logits.all_views import StoredViews, views_per_image

ROOT = Path(__file__).parents[1]
CLASSES, BATCH, FEW = 100, 64, 1024  # FEW views are enough for slow modes


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    views = config.load(ROOT).datasets["cifar100"].base_view
    assert views is not None
    rng = np.random.default_rng(0)
    rows = args.images * views_per_image(views)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "views.h5"
        logits = rng.standard_normal((rows, CLASSES), np.float32).astype(np.float16)
        store.write_store(path, logits, {})
        memory_map, size = store.read_store(path, logits.shape, "float16", {}), logits.nbytes
        del logits
        identity = FeatureExtractor("none", torch.nn.Identity(), config.Model(family="resnet"))
        source = StoredViews(Online(identity), memory_map, views)
        random_rows = rng.integers(rows, size=args.images)
        cpu, few = torch.device("cpu"), min(FEW, args.images)
        with h5py.File(path, locking=False) as file:
            dataset = file[store.NAME]
            modes: dict[str, tuple[int, Callable[[int], object]]] = {
                "memory map, at random": (
                    len(random_rows),
                    lambda at: source.from_store(memory_map[random_rows[at : at + BATCH]], cpu),
                ),
                "memory map, in order": (
                    len(random_rows),
                    lambda at: source.from_store(memory_map[at : at + BATCH], cpu),
                ),
                "h5py, row by row": (few, lambda at: np.stack([dataset[i] for i in random_rows[at : at + BATCH]])),
                "h5py, fancy": (few // 4, lambda at: dataset[np.unique(random_rows[at : at + BATCH])]),
            }
            speeds: dict[str, list[float]] = {name: [] for name in modes}
            for _ in range(args.rounds + 1):
                for name, (count, read) in modes.items():
                    start = time.perf_counter()
                    for at in range(0, count, BATCH):
                        read(at)
                    speeds[name].append(count / (time.perf_counter() - start))
    figures = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    print(f"{size / 1e6:.0f} MB, {describe_machine()}")
    for name, speed in figures.items():
        print(f"{name:20} {speed:10,.0f} images/s")
    save_results(args.json, megabytes=size / 1e6, images_per_second=figures)


if __name__ == "__main__":
    main()
