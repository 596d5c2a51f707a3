"""Whole tiny runs with a given source of teacher logits."""

from collections.abc import Callable
from pathlib import Path

from small import CPU, DATA, METHODS, run_of, state_of, teacher_for
from torch import Tensor

from kdflow.config import RunSettings
from kdflow.core.progress import Event
from kdflow.training import teacher_logits
from kdflow.training.loop import fit
from kdflow.training.record import Epoch
from kdflow.training.run import teacher_extractor
from kdflow.training.step import StudentWithLoss, new_student
from kdflow.training.teacher_logits import Online, TeacherSource
from kdflow.training.teacher_logits.replay import Replay, ReplayCache
from kdflow.training.teacher_logits.store import CacheKey

GIGABYTE = 10**9
Result = tuple[tuple[Epoch, ...], dict[str, Tensor]]


def key_of(run: RunSettings) -> CacheKey:
    return teacher_logits.cache_key(run, "t" * 64, "d" * 64)


def trained(run: RunSettings, source: TeacherSource, file: Path, learner: StudentWithLoss | None = None) -> Result:
    """Train from the seed; return curve and weights, and leave the checkpoint at `file`."""

    def emit(event: Event) -> None:
        pass

    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    learner = learner or new_student(run, DATA.train.labels)
    progress = fit("run", run, DATA, learner, source, file, "k" * 64, emit)
    return progress.curve, state_of(learner)


def online(method: str, folder: Path) -> Result:
    run = run_of(METHODS[method])
    return trained(run, Online(teacher_extractor(run, teacher_for(run.method))), folder / f"online-{method}")


def replay(
    method: str, folder: Path, note: Callable[[str], None], dtype: str = "float32", limit: int = GIGABYTE, seed: int = 3
) -> tuple[RunSettings, Replay]:
    """Return a run, and its source with the replay cache in `folder`/replay."""
    run = run_of(METHODS[method]).model_copy(update={"seed": seed})
    key = {**key_of(run), **teacher_logits.plan_cache_key(run, str(CPU))}
    return run, Replay(
        teacher_extractor(run, teacher_for(run.method)),
        ReplayCache(folder / "replay", key, limit),
        key,
        4,
        dtype,
        note,
    )


def replayed(method: str, folder: Path, dtype: str = "float32", **options: int) -> Result:
    """Train with replay, from the seed and not from a checkpoint, and check that there are no notes."""
    notes: list[str] = []
    run, source = replay(method, folder, notes.append, dtype, **options)
    result = trained(run, source, folder / f"run-{method}")
    assert notes == []
    return result
