"""Options of a small distillation."""

from pathlib import Path

from kdflow.config import Compute, UserFolder
from kdflow.pipeline import distill_options

COMPUTE = Compute(device="cpu", threads=1, max_parallel_runs=None, processes_per_run=1, replay_gb=1.0, loader_workers=0)


def options_for(folder: Path, **options: object) -> distill_options.DistillOptions:
    """Return options for images in `folder`/images, with some of them changed."""
    values = {
        "data": UserFolder(folder=str(folder / "images"), image_size=32),
        "teacher": "resnet14",
        "student": "resnet8",
        "method": "kd",
        "out": folder / "out",
        "epochs": 2,
        "teacher_epochs": None,
        "teacher_model": None,
        "seeds": 1,
        "compare": False,
        "compute": COMPUTE,
    }
    return distill_options.DistillOptions(**values | options)
