"""A run may be interrupted at any step, and has the same digits every time."""

import math
from pathlib import Path

import pytest
import safetensors
import torch
from small import CPU, DATA, METHODS, TEACHER, batches_of, online_source, run_of, same, state_of, step_of, teacher_for

from kdflow.config import Compute, DatasetSource, Precision, RunSettings
from kdflow.core.errors import UserError
from kdflow.core.progress import Event, Finished, Note, RunUpdate
from kdflow.data import prepare
from kdflow.models import create_model, load_exact, save_weights
from kdflow.training import checkpoint, loop
from kdflow.training.device import cuda_device, pick_device
from kdflow.training.job import Job
from kdflow.training.loop import fit
from kdflow.training.record import Budget, RunLog, read_record
from kdflow.training.run import run_job
from kdflow.training.step import new_student

KEY = "k" * 64
# Each with another kind of state: none, a pool, trained modules of the loss, its banks, a warm-up, and no momentum.
RUNS = {name: run_of(METHODS[name]) for name in ("ce", "kd_tlcutmix_pick", "vid_kd", "crd_kd_tlcutmix_pick")}
WARM_UP = METHODS["dkd"].loss.model_copy(update={"options": {"warmup": 1.0}})  # each epoch has another weight
RUNS["dkd"] = run_of(METHODS["dkd"].model_copy(update={"loss": WARM_UP}))
RUNS["kd without momentum"] = run_of(METHODS["kd"], momentum=0.0)


# --- a run -------------------------------------------------------------------------------------------------


class StopError(Exception):
    """Raised from emit, as an interruption would be."""


def _fit(run: RunSettings, file: Path, events: list[Event], stop: tuple[int, int] | None = None, key: str = KEY):
    """Train from the seed, or from the checkpoint at `file`; `stop` interrupts after (epochs, steps)."""
    learner = new_student(run, DATA.train.labels)

    def emit(event: Event) -> None:
        events.append(event)
        if stop is not None and isinstance(event, RunUpdate) and (event.epoch, event.done) == stop:
            raise StopError

    progress = fit("run", run, DATA, learner, online_source(run, teacher_for(run.method)), file, key, emit)
    return progress, state_of(learner)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return {name: _fit(run, folder / name, []) for name, run in {**RUNS, "kd": run_of(METHODS["kd"])}.items()}


@pytest.mark.parametrize("stop", [(1, 3), (2, 6), (1, 5), (0, 2)], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_same_digits(uninterrupted, tmp_path, monkeypatch, name, stop):
    monkeypatch.setattr(loop, "REPORT_EVERY", 0.0)  # an event after every step
    file, events = tmp_path / "run" / "checkpoint", []
    with pytest.raises(StopError):
        _fit(RUNS[name], file, [], stop)
    progress, state = _fit(RUNS[name], file, events)
    expected, expected_state = uninterrupted[name]
    assert progress.curve == expected.curve
    assert same(state, expected_state)
    assert progress.resumed == (1 if stop[0] else 0)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == ([f"resumed after epoch {stop[0]}"] if stop[0] else [])
    assert min(event.done for event in events if isinstance(event, RunUpdate)) == 3 * stop[0] + 1
    assert {path.name for path in file.parent.iterdir()} == {file.name, checkpoint.previous_path(file).name}


def test_the_curve_has_the_trained_epochs(uninterrupted):
    curve = uninterrupted["kd"][0].curve
    assert [point.epoch for point in curve] == [1, 2, 3]
    # 3 epochs; the learning rate falls after 0.5 and 0.75 of them, rounded down to 1 and 2.
    assert [point.lr for point in curve] == pytest.approx([0.05, 0.005, 0.0005])
    assert [point.top1 is None for point in curve] == [True, False, False]  # every second epoch and the last
    assert uninterrupted["kd"][0].resumed == 0


def test_loss_and_pick_ratio_of_an_epoch_are_means(uninterrupted):
    run = run_of(METHODS["kd_tlcutmix_pick"])
    step = step_of(run, new_student(run, DATA.train.labels), teacher_for(run.method))
    batches = batches_of(run)
    steps = [step(batch, 0.05) for batch in batches]
    first = uninterrupted["kd_tlcutmix_pick"][0].curve[0]
    assert first.loss == pytest.approx(
        sum(result.loss.item() * len(batch.labels) for result, batch in zip(steps, batches, strict=True)) / 20
    )
    assert first.pick_ratio == pytest.approx(sum(result.pick_ratio.item() for result in steps) / 3)
    assert first.pick_ratio > 1
    assert uninterrupted["kd"][0].curve[0].pick_ratio is None


def _flip(share: float):
    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[int(len(content) * share)] ^= 1
        return bytes(changed)

    return damage


DAMAGE = {
    "flipped in the header": _flip(0.01),
    "flipped in the middle": _flip(0.6),
    "flipped at the end": _flip(0.999),
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "text": lambda content: b"no checkpoint\n" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("both", [False, True], ids=["the last one", "both"])
def test_a_damaged_checkpoint_is_ignored_and_the_run_ends_with_the_same_digits(uninterrupted, tmp_path, damage, both):
    run, file, events = run_of(METHODS["kd"]), tmp_path / "checkpoint", []
    with pytest.raises(StopError):
        _fit(run, file, [], (2, 6))
    damaged = [file, checkpoint.previous_path(file)] if both else [file]
    for path in damaged:
        path.write_bytes(damage(path.read_bytes()))
    progress, state = _fit(run, file, events)
    notes = [event.text for event in events if isinstance(event, Note)]
    for note, path in zip(notes, damaged, strict=False):
        assert "\n" not in note
        assert note.startswith(f"{path}: damaged checkpoint")
    assert notes[len(damaged) :] == ([] if both else ["resumed after epoch 1"])
    assert progress.curve == uninterrupted["kd"][0].curve
    assert same(state, uninterrupted["kd"][1])
    assert progress.resumed == (0 if both else 1)


def test_a_checkpoint_of_another_run_is_ignored(uninterrupted, tmp_path):
    run, file, events = run_of(METHODS["kd"]), tmp_path / "checkpoint", []
    with pytest.raises(StopError):
        _fit(run, file, [], (2, 6), key="other" * 10)
    progress, state = _fit(run, file, events)
    assert any(isinstance(event, Note) and "another run" in event.text for event in events)
    assert progress.curve == uninterrupted["kd"][0].curve
    assert same(state, uninterrupted["kd"][1])


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        run = run_of(METHODS["ce"])
        training = run.training.model_copy(update={"lr": 1e10})  # more than the settings allow
        _fit(run.model_copy(update={"training": training}), tmp_path / "checkpoint", [])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run: the loss is ")
    assert "at step 2 (epoch 1)" in message or "at step 3 (epoch 1)" in message
    assert "learning rate 1e+10; last checkpoint: none" in message
    assert not (tmp_path / "checkpoint").exists()


# --- a job -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return a folder with a dataset of 40 training images and the weights of a teacher."""
    folder = tmp_path_factory.mktemp("inputs")
    spec = DatasetSource(reader="digits", classes=10, image_size=8, train_images=40, test_images=1757)
    prepare("digits", spec, None, folder, folder / "digits.h5")
    torch.manual_seed(1)
    save_weights(create_model("larger", TEACHER, 10, 8), folder / "teacher.safetensors")
    return folder


def _job(inputs: Path, folder: Path, scratch: Path, method: str = "kd_tlcutmix_pick") -> Job:
    base = run_of(METHODS[method], epochs=2)
    run = base.model_copy(update={"dataset": "digits", "train_images": 20, "classes": 10})
    return Job(
        name="seed 3",
        run=run,
        budget=Budget(epochs=2, full_epochs=3, train_images=20, full_train_images=40, demo=True),
        dataset=inputs / "digits.h5",
        teacher=inputs / "teacher.safetensors" if run.teacher else None,
        views_store=None,
        weights=folder / "weights.safetensors",
        log=folder / "log.json",
        work_dir=scratch,
        compute=Compute(
            device="cpu", threads=1, max_parallel_runs=None, replay_gb=1.0, loader_workers=0, processes_per_run=1
        ),
    )


@pytest.mark.parametrize("method", ["ce", "kd_tlcutmix_pick"])
def test_a_job_run_twice_gives_the_same_log_apart_from_timing(inputs, tmp_path, method):
    logs, weights, events = [], [], []
    for name, scratch in (
        ("a", "s1"),
        ("b", "s2"),
        ("c", "s2"),
    ):  # the third one finds the finished checkpoint of the second
        job = _job(inputs, tmp_path / name, tmp_path / scratch, method)
        run_job(job, events.append)
        logs.append(read_record(job.log, RunLog))
        weights.append(job.weights.read_bytes())
    plain = [log.model_dump(exclude={"timing"}) for log in logs]
    assert plain[0] == plain[1] == plain[2]
    assert weights[0] == weights[1] == weights[2]
    assert [log.timing.resumed for log in logs] == [0, 0, 1]
    assert (logs[0].teacher_sha256 is None) == (method == "ce")
    assert logs[0].settings == job.run
    assert logs[0].settings_sha256 == job.run.sha256
    assert len(logs[0].curve) == 2
    assert all(math.isfinite(point.loss) for point in logs[0].curve)
    finished = [event.scratch for event in events if isinstance(event, Finished)]
    assert len(finished) == 3
    assert finished[0].parent == tmp_path / "s1/runs"


def test_a_checkpoint_of_a_run_with_another_teacher_is_ignored(inputs, tmp_path):
    """It is ignored even if it has the path of the run's checkpoint."""
    alone = _job(inputs, tmp_path / "alone", tmp_path / "alone/scratch")
    run_job(alone, lambda event: None)
    torch.manual_seed(2)
    save_weights(create_model("larger", TEACHER, 10, 8), tmp_path / "other.safetensors")
    job = _job(inputs, tmp_path, tmp_path / "scratch")
    run_job(job.model_copy(update={"teacher": tmp_path / "other.safetensors"}), lambda event: None)
    (expected,), (other,) = ((each.work_dir / "runs").iterdir() for each in (alone, job))
    assert expected.name != other.name
    other.rename(other.with_name(expected.name))
    events = []
    run_job(job, events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    files = [job.work_dir / "runs" / expected.name / f"checkpoint{kind}.safetensors" for kind in ("", ".before")]
    assert notes == [f"{file}: checkpoint of another run; it is ignored" for file in files]
    assert read_record(job.log, RunLog).curve == read_record(alone.log, RunLog).curve
    assert job.weights.read_bytes() == alone.weights.read_bytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": 100}, "40 training images of 10 classes at 8 px, expected 40 training images of 100 classes"),
        ({"image_size": 16}, "10 classes at 8 px, expected 40 training images of 10 classes at 16 px"),
        ({"train_images": 50}, "40 training images of 10 classes at 8 px, expected 50 training images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_intact_file_of_another_dataset_is_refused_and_nothing_is_overwritten(inputs, tmp_path, changed, message):
    job = _job(inputs, tmp_path, tmp_path / "scratch")
    run_job(job, lambda event: None)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = job.run.model_copy(update={"train_images": 40, **changed})
    with pytest.raises(UserError) as caught:
        run_job(job.model_copy(update={"run": other}), lambda event: None)
    assert str(caught.value).startswith(f"{inputs / 'digits.h5'}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["cuda:7", "cuda:99", "mps"])
def test_a_device_that_does_not_exist_is_refused(name):
    kind = name.split(":", maxsplit=1)[0]
    if kind == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    if kind == "cuda" and torch.cuda.device_count() > int(name.split(":")[1]):
        pytest.skip("this machine has one")
    with pytest.raises(UserError) as caught:
        pick_device(name)
    assert str(caught.value).startswith(f"compute.device (--device): {name}: ")
    assert "\n" not in str(caught.value)


def test_devices_that_exist():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_parallel_runs_are_assigned_to_gpus_in_turn():
    assert [cuda_device(run_index, 0).type for run_index in range(3)] == ["cpu"] * 3
    assert [str(cuda_device(run_index, 1)) for run_index in range(3)] == ["cuda:0"] * 3
    assert [str(cuda_device(run_index, 3)) for run_index in range(5)] == [
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:0",
        "cuda:1",
    ]


def test_a_folded_teacher_is_refused_for_losses_on_features_only(inputs, tmp_path):
    jobs = {name: _job(inputs, tmp_path, tmp_path / "scratch", name) for name in ("dkd", "sp")}
    for name, job in jobs.items():
        run = job.run.model_copy(update={"precision": Precision(fold_teacher=True)})
        jobs[name] = job.model_copy(update={"run": run})
    with pytest.raises(UserError, match=r"precision\.fold_teacher: .* features"):
        run_job(jobs["sp"], lambda event: None)
    run_job(jobs["dkd"], lambda event: None)
    assert read_record(jobs["dkd"].log, RunLog).settings.precision.fold_teacher


def test_a_teacher_in_onnxruntime_is_recorded_with_its_version(inputs, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    job = _job(inputs, tmp_path, tmp_path / "scratch", "kd")
    run = job.run.model_copy(update={"precision": Precision(teacher_runtime="onnxruntime")})
    run_job(job.model_copy(update={"run": run}), lambda event: None)
    log = read_record(job.log, RunLog)
    assert log.settings.precision.teacher_runtime == "onnxruntime"
    assert log.machine.versions["onnxruntime"] == onnxruntime.__version__


def test_modules_of_a_loss_are_in_the_checkpoint_and_not_in_the_exported_student(inputs, tmp_path):
    job = _job(inputs, tmp_path, tmp_path / "scratch", "crd_kd_tlcutmix_pick")
    run_job(job, lambda event: None)
    (checkpoint,) = (tmp_path / "scratch/runs").glob("*/checkpoint.safetensors")
    with safetensors.safe_open(checkpoint, "pt") as file:
        names = set(file.keys())
    assert any(key.startswith("model.loss.") for key in names)
    trained = list(new_student(job.run, torch.arange(20) % 10).parameters())
    assert sum(key.startswith("optimizer.") for key in names) == len(trained)
    load_exact(create_model("small", job.run.model, 10, 8), job.weights)  # strictly
