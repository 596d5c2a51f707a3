"""How many images a second a store of teacher logits serves, against the same HDF5 file read through h5py.

    python benchmarks/store.py [--images 5000] [--rounds 5] [--json FILE]

A store of all 162 flip/crop views of so many images, 100 classes in float16 (CIFAR-100's 50,000 images: 1.6 GB), is
read in batches of 64 views at random, as a run reads it: mapped, up to float32 tensors. Against it stand h5py's rows
one by one and its fancy indexing. And an epoch of replay: the same number of views one after the other. They take
turns; the file is in the system's cache, as it is from the second epoch on.
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
from machine import keep, told

from kdflow import config
from kdflow.models.features import FeatureExtractor
from kdflow.training.teacher_logits import store
from kdflow.training.teacher_logits.all_views import StoredViews, views_per_image

ROOT = Path(__file__).parents[1]
CLASSES, BATCH, FEW = 100, 64, 1024  # FEW views are enough of what is slow


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="keep the figures here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    views = config.load(ROOT).datasets["cifar100"].base_view
    assert views is not None
    rng = np.random.default_rng(0)
    rows = asked.images * views_per_image(views)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "views.h5"
        logits = rng.standard_normal((rows, CLASSES), np.float32).astype(np.float16)
        store.write_store(path, logits, {})
        mapped, size = store.read_store(path, logits.shape, "float16", {}), logits.nbytes
        del logits
        identity = FeatureExtractor("none", torch.nn.Identity(), config.Model(family="resnet"))
        source = StoredViews(identity, mapped, views)
        wanted = rng.integers(rows, size=asked.images)
        cpu = torch.device("cpu")
        with h5py.File(path, locking=False) as file:
            dataset = file[store.NAME]
            ways: dict[str, tuple[int, Callable[[int], object]]] = {
                "mapped, at random": (
                    len(wanted), lambda at: source.stored(mapped[wanted[at : at + BATCH]], cpu)
                ),
                "mapped, in order": (len(wanted), lambda at: source.stored(mapped[at : at + BATCH], cpu)),
                "h5py, row by row": (FEW, lambda at: np.stack([dataset[i] for i in wanted[at : at + BATCH]])),
                "h5py, fancy": (FEW // 4, lambda at: dataset[np.unique(wanted[at : at + BATCH])]),
            }  # fmt: skip
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(asked.rounds + 1):
                for name, (count, read) in ways.items():
                    start = time.perf_counter()
                    for at in range(0, count, BATCH):
                        read(at)
                    speeds[name].append(count / (time.perf_counter() - start))
    found = {name: statistics.median(values[1:]) for name, values in speeds.items()}
    print(f"{size / 1e6:.0f} MB, {told()}")
    for name, speed in found.items():
        print(f"{name:20} {speed:10,.0f} images/s")
    keep(asked.json, megabytes=size / 1e6, images_per_second=found)


if __name__ == "__main__":
    main()
