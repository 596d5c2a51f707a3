"""The stage that computes teacher logits ahead of training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from kdflow.config import Experiment, RunSettings
from kdflow.core import files
from kdflow.core.progress import Display, StoreMeter
from kdflow.pipeline import VIEWS_STORE
from kdflow.teachers.initial_weights import with_initial_weights, with_teacher_record


def write_logits(experiment: Experiment, dataset: Path, teacher: Path, out: Path, work_dir: Path) -> None:
    """Write to `out` the source of the students' teacher logits, and the store of all views if that is the source."""
    experiment = with_teacher_record(with_initial_weights(experiment, work_dir.parent), teacher)
    params = experiment.params
    runs = [experiment.student_run(method, 0) for method in params.methods]
    run = next((run for run in runs if run.reads_views), None)
    if run is not None:
        write_views(run, params.compute.device, dataset, teacher, work_dir, out / VIEWS_STORE)
    files.write_text(out / "source.json", json.dumps({"source": params.teacher_logits}) + "\n")


def write_views(
    run: RunSettings, device_setting: str, dataset: Path, teacher: Path, work_dir: Path, out: Path | None = None
) -> Path:
    """Compute the teacher logits of all views; an interrupted attempt is resumed from `work_dir`.

    Writes them to `out`. If it is None, they go to a cache in `work_dir`, where later calls find them.

    Returns:
        The path of the store.
    """
    from kdflow.data import load
    from kdflow.models.precision import use_tf32
    from kdflow.training.device import device_name, pick_device
    from kdflow.training.run import load_teacher, teacher_extractor
    from kdflow.training.teacher_logits import all_views, cache_key, digits_key

    device = pick_device(device_setting)
    use_tf32(run.precision.tf32)
    data = load(dataset, run.train_images, device)
    model, teacher_sha256 = load_teacher(teacher / "model.safetensors", run, device)
    forward = teacher_extractor(run, model).forward
    identity, dtype = cache_key(run, teacher_sha256, data.sha256), run.logit_source[1]
    # An interrupted attempt is resumed only where the same digits are computed.
    digits = digits_key(run, device_name(device))
    key = hashlib.sha256(json.dumps([identity, dtype, digits]).encode()).hexdigest()[:16]
    cached = work_dir / "views" / f"{key}.h5"
    with (
        Display("logits") as display,
        files.exclusive_folder(work_dir / "views" / key, "this store", print) as folder,
    ):
        if out is None and cached.exists():
            return cached
        meter = StoreMeter(len(data.train), display)
        store = folder / VIEWS_STORE
        all_views.fill(store, forward, data.train, run, dtype, identity, meter.done)
        with files.atomic_write(out or cached) as temporary:
            shutil.move(store, temporary)
        shutil.rmtree(folder)
    print(f"{out or cached}: {len(data.train) * all_views.views_per_image(run.base_view):,} views, {dtype}")
    return out or cached
