"""Initial weights by name: of torchvision, of timm, of the registry of teachers, or from a file."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdflow import config, teachers
from kdflow.config import Experiment, FoundWeights, Initial, InitialFile, InitialWeights, Normalisation
from kdflow.core import files
from kdflow.core.download import DownloadSpec, download
from kdflow.core.errors import UserError
from kdflow.core.progress import Display
from kdflow.teachers import SCRATCH, TeacherEntry
from kdflow.training import record
from kdflow.training.record import RunLog, TeacherRecord

MAX_SIZE = 10**11  # bytes of a download whose size is not published


def with_initial_weights(experiment: Experiment, root: Path) -> Experiment:
    """Return the experiment with what is known of its initial weights; nothing is downloaded.

    Raises:
        UserError: there are no such weights.
    """
    params = experiment.params
    if experiment.initial:
        return experiment
    named = {"teacher": params.teacher_init, "student": params.student_init}
    found = {role: find(f"{role}_init", initial, root) for role, initial in named.items() if initial is not None}
    return experiment.model_copy(update={"initial": found}) if found else experiment


def find(where: str, initial: Initial, root: Path) -> FoundWeights:
    """Return what is known of initial weights; relative files are below `root`.

    Raises:
        UserError: there are no such weights.
    """
    if isinstance(initial, InitialFile):
        return _file(initial, root)
    folder = root / SCRATCH / "teachers"
    if re.fullmatch(r"\w+_Weights\.\w+", initial):
        return _torchvision(initial, folder)
    if initial.startswith("timm:"):
        return _timm(where, initial.removeprefix("timm:"), folder)
    registry = teachers.load(root)
    if initial not in registry.entries:
        raise config.unknown_name(
            f"{where} (ResNet18_Weights.DEFAULT and others of torchvision, timm:NAME, or recipes/teachers.yaml)",
            initial,
            registry.entries,
        )
    entry = registry.entries[initial]
    view, spec = registry.recipes.datasets[entry.dataset].base_view, entry.download_spec
    return FoundWeights(
        weights=InitialWeights(source=f"teacher {initial}", sha256=spec.sha256),
        file=str(registry.weights_file(initial)),
        urls=tuple(spec.urls),
        size=spec.size,
        mean=view.mean if view else None,
        std=view.std if view else None,
        image_size=registry.recipes.datasets[entry.dataset].data.image_size,
    )


def _torchvision(name: str, folder: Path) -> FoundWeights:
    entry = TeacherEntry(dataset="imagenet", architecture="", torchvision=name, licence="", source="")
    spec, weights = entry.download_spec, entry.torchvision_weights
    transform = weights.transforms()
    return FoundWeights(
        weights=InitialWeights(source=f"torchvision {weights}", sha256=spec.sha256),
        file=str(folder / spec.urls[0].rpartition("/")[2]),
        urls=tuple(spec.urls),
        size=spec.size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        image_size=int(transform.crop_size[0]),
    )


def _timm(where: str, name: str, folder: Path) -> FoundWeights:
    from kdflow.models.families.timm import import_timm

    try:
        timm = import_timm()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    settings = timm.get_pretrained_cfg(name) if name in timm.list_pretrained() else None
    if settings is None:
        raise config.unknown_name(f"{where}: timm", name, timm.list_pretrained(f"{name.partition('.')[0]}*") or ["-"])
    url = settings.url or f"https://huggingface.co/{settings.hf_hub_id}/resolve/main/model.safetensors"
    prefix = re.search(r"-([0-9a-f]{8,})\.\w+$", url)
    return FoundWeights(
        weights=InitialWeights(source=f"timm {name}", sha256=prefix[1] if prefix else ""),
        file=str(folder / f"timm-{re.sub('[^A-Za-z0-9_.-]', '_', name)}{Path(url).suffix}"),
        urls=(url,),
        size=MAX_SIZE,
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        image_size=int(settings.input_size[-1]),
    )


def _file(given: InitialFile, root: Path) -> FoundWeights:
    file = root / files.expand_home(given.file)
    found = FoundWeights(
        weights=InitialWeights(source=f"file {file.name}", sha256=given.sha256), file=str(file),
        mean=given.mean, std=given.std,
    )  # fmt: skip
    if given.mean is not None:
        return found
    run = recorded_run(file, given.sha256)
    if run is not None:
        return found.model_copy(update=_training_of(run.settings.base_view, run.settings.image_size))
    registry = teachers.load(root)
    for entry in registry.entries.values():
        if entry.sha256 == given.sha256:
            dataset = registry.recipes.datasets[entry.dataset]
            return found.model_copy(update=_training_of(dataset.base_view, dataset.data.image_size))
    return found


def recorded_run(file: Path, sha256: str | None) -> RunLog | None:
    """Return the log of the run that trained these weights, if kdflow did and the log is beside them; else None."""
    for log in (file.with_suffix(".json"), file.with_name("training.json")):  # beside a student, a teacher
        try:
            run = record.read_record(log, RunLog)
        except UserError:  # there is none, or it is a file of another program or version
            continue
        if run.weights_sha256 == sha256:
            return run
    return None


def training_record(file: Path, sha256: str | None) -> RunLog | TeacherRecord | None:
    """Return the log beside these weights, or else the record of a teacher from a file; None without either."""
    run = recorded_run(file, sha256)
    if run is not None:
        return run
    with suppress(UserError):  # there is none, or it is a file of another program or version
        made = record.read_record(file.with_name("record.json"), TeacherRecord)
        return made if made.sha256 == sha256 else None
    return None


def with_teacher_record(experiment: Experiment, teacher: Path | None) -> Experiment:
    """Return the experiment with the normalisation in the record of the teacher in the folder `teacher`."""
    if teacher is None or experiment.params.teacher_weights.file is None:
        return experiment
    made = record.read_record(teacher / "record.json", TeacherRecord)
    return experiment.model_copy(update={"teacher_normalisation": made.normalisation})


def recorded_normalisation(experiment: Experiment, file: Path, sha256: str | None) -> Normalisation | None:
    """Return the normalisation in the record beside teacher weights, if it is not that of the experiment's dataset.

    Mean and standard deviation of a folder of images are measured, so a teacher from another folder has others. Those
    of a dataset of recipes/datasets.yaml are in its recipe, which is for all models.
    """
    view, found = experiment.dataset.base_view, training_record(file, sha256)
    if isinstance(experiment.params.dataset, str) or view is None or found is None:
        return None
    if isinstance(found, TeacherRecord):
        return found.normalisation
    trained = found.settings.base_view
    same = (trained.mean, trained.std) == (view.mean, view.std)
    return None if same else Normalisation(mean=trained.mean, std=trained.std)


def _training_of(view: config.BaseView | None, image_size: int) -> dict[str, Any]:
    return {"image_size": image_size} | ({} if view is None else {"mean": view.mean, "std": view.std})


def _cached(found: FoundWeights) -> list[Path]:
    """Return the files in which torch and Hugging Face's library keep a download."""
    from torch import hub

    url = found.urls[0]
    places: list[Path] = [Path(hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]]
    if hugging_face := re.match("https://huggingface.co/(.+)/resolve/main/(.+)$", url):
        folder = files.expand_home(os.environ.get("HF_HOME", "~/.cache/huggingface")) / "hub"
        places += folder.glob(f"models--{hugging_face[1].replace('/', '--')}/snapshots/*/{hugging_face[2]}")
    return places


def fetch(found: FoundWeights) -> Path:
    """Return the file of initial weights: itself, in the cache of torch or timm, or downloaded.

    Raises:
        UserError: it is missing, or has another hash.
    """
    file, sha256 = Path(found.file), found.weights.sha256
    spec = DownloadSpec(found.urls, sha256, found.size)
    places: list[Path] = [file, *(_cached(found) if found.urls else ())]
    for place in places:
        if place.is_file() and files.sha256(place).startswith(sha256):
            return place
    if not found.urls:
        problem = spec.mismatch(file) if file.is_file() else "no such file"
        raise UserError(f"{file}: {problem}")
    with files.exclusive_folder(file.parent, "these weights", print):
        if not (file.is_file() and spec.mismatch(file) is None):
            with Display("fetch") as display:
                download(spec, file, display)
    return file
