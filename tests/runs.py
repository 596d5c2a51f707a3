"""A whole tiny run with a source of logits of its own."""

from collections.abc import Callable
from pathlib import Path

from small import CPU, DATA, METHODS, run_of, state_of, teacher_for
from torch import Tensor

from kdflow import logits, train
from kdflow.config import RunSettings
from kdflow.logits import Online, Source
from kdflow.logits.replay import Replay, Shelf
from kdflow.logits.store import About
from kdflow.progress import Event
from kdflow.record import Epoch
from kdflow.step import Learner, new_learner

GIGABYTE = 10**9
Result = tuple[tuple[Epoch, ...], dict[str, Tensor]]


def about_of(run: RunSettings) -> About:
    return logits.about(run, "t" * 64, "d" * 64)


def trained(run: RunSettings, source: Source, file: Path, learner: Learner | None = None) -> Result:
    """The curve and the weights of a run, from its seed; its checkpoint is left behind."""

    def emit(event: Event) -> None:
        pass

    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    learner = learner or new_learner(run, DATA.train.labels)
    progress = train.fit("run", run, DATA, learner, source, file, "k" * 64, emit)
    return progress.curve, state_of(learner)


def online(method: str, folder: Path) -> Result:
    run = run_of(METHODS[method])
    return trained(run, Online(train.extractor(run, teacher_for(run.method))), folder / f"online-{method}")


def replay(
    method: str, folder: Path, note: Callable[[str], None], dtype: str = "float32", limit: int = GIGABYTE, seed: int = 3
) -> tuple[RunSettings, Replay]:
    """A run, and a source that replays from `folder`/replay."""
    run = run_of(METHODS[method]).model_copy(update={"seed": seed})
    about = {**about_of(run), **logits.about_plan(run, str(CPU))}
    return run, Replay(
        train.extractor(run, teacher_for(run.method)), Shelf(folder / "replay", about, limit), about, 4, dtype, note
    )


def replayed(method: str, folder: Path, dtype: str = "float32", **options: int) -> Result:
    """A run that replays, from its seed and not from a checkpoint, and has nothing to remark."""
    notes: list[str] = []
    run, source = replay(method, folder, notes.append, dtype, **options)
    result = trained(run, source, folder / f"run-{method}")
    assert notes == []
    return result
