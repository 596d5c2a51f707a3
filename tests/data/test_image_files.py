"""Images from files: the pixels of a slow loop with any number of workers, and runs with the same curves."""

import shutil

import pytest
import torch
from PIL import Image
from small import DATA, METHODS, STUDENT, TEACHER, online_source, run_of, same, state_of
from torchvision.transforms import v2
from tree import SPEC, VIEWS, make_tree

from kdflow.config import Compute, RunSettings
from kdflow.core.errors import UserError
from kdflow.core.progress import Finished, Note, RunUpdate
from kdflow.data import ImageFiles, load, prepare
from kdflow.launch.parallel_runs import run_parallel
from kdflow.models import create_model, save_weights
from kdflow.report.disagreement import measure
from kdflow.training.batches import make_batches
from kdflow.training.epoch_plan import EpochPlan, draw_plan
from kdflow.training.evaluate import BATCH, predict_logits
from kdflow.training.job import Job
from kdflow.training.loop import fit
from kdflow.training.record import Budget, RunLog, read_record
from kdflow.training.run import run_job
from kdflow.training.step import new_student

CPU = torch.device("cpu")
RESIZE = VIEWS.resize
CENTER = [v2.Resize(36), v2.CenterCrop(32)]
BASE_VIEWS = {
    "flip+crop": [v2.RandomResizedCrop(32, scale=(0.08, 1.0)), v2.RandomHorizontalFlip()],
    "flip": [*CENTER, v2.RandomHorizontalFlip()],
    "none": CENTER,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    prepare("tree", SPEC, make_tree(folder / "tree"), folder, folder / "tree.h5")
    return folder / "tree.h5"


def settings(method: str = "ce", **changes: object) -> RunSettings:
    tree = {"dataset": "tree", "train_images": 12, "classes": 2, "image_size": 32, "base_view": VIEWS}
    return run_of(METHODS[method], batch_size=5, epochs=2).model_copy(update={**tree, **changes})


def plan_of(run: RunSettings, epoch: int = 0) -> EpochPlan:
    return draw_plan(run.seed, epoch, 12, 5, 32, run.base_view, run.method.strong, CPU)


def slow_view(images: ImageFiles, index: int, steps: list[torch.nn.Module]) -> torch.Tensor:
    """One view, normalised in float64."""
    with Image.open(images.folder / images.files.paths[index].decode()) as image:
        pixels = image.convert("RGB")
    for step in steps:
        pixels = step(pixels)
    x = v2.functional.pil_to_tensor(pixels).double() / 255
    return (x - torch.tensor(VIEWS.mean)[:, None, None]) / torch.tensor(VIEWS.std)[:, None, None]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("base_view", BASE_VIEWS)
def test_batches_equal_those_of_a_slow_loop(prepared, base_view, workers):
    images = load(prepared, 12, CPU, workers).train
    run = settings(base_view=VIEWS.reduced_to(base_view))
    plan = plan_of(run, epoch=1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = list(make_batches(images, run.base_view)(plan))
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(batch.labels) for batch in batches] == [5, 5, 2]
    expected = []
    for index, seed in zip(plan.order.tolist(), plan.image_seeds.tolist(), strict=True):
        torch.manual_seed(seed)
        expected.append(slow_view(images, index, BASE_VIEWS[base_view]))
    found = torch.cat([batch.x for batch in batches])
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=0, atol=1e-6)  # a grey level is 0.013
    assert all(batch.x.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels[plan.order].tolist()
    assert [batch.plan.offset for batch in batches] == [0, 5, 10]


def test_views_differ_between_epochs_and_images(prepared):
    images, run = load(prepared, 12, CPU).train, settings()
    plan, other = plan_of(run), plan_of(run, epoch=1)
    assert len({*plan.image_seeds.tolist(), *other.image_seeds.tolist()}) == 24
    assert torch.equal(plan.image_seeds, plan_of(settings("kd_tlcutmix_pick")).image_seeds)
    views = [torch.cat([b.x for b in make_batches(images, VIEWS)(p)])[p.order.argsort()] for p in (plan, other)]
    assert all(not torch.equal(a, b) for a, b in zip(*views, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_testing_uses_the_center_of_each_image_in_order(prepared, monkeypatch, workers):
    monkeypatch.setattr("kdflow.training.evaluate.BATCH", 4)
    images = load(prepared, 12, CPU, workers).test
    model = create_model("small", STUDENT, 2, 32)
    found = predict_logits(model, images, VIEWS)
    x = torch.stack([slow_view(images, index, CENTER) for index in range(6)]).float()
    torch.testing.assert_close(found, model.eval()(x), rtol=1e-4, atol=1e-4)
    assert BATCH > 4


@pytest.mark.parametrize("workers", [0, 2])
def test_simultaneous_passes_and_one_after_an_aborted_pass_are_independent(prepared, workers):
    images = load(prepared, 12, CPU, workers).train
    expected = torch.cat(list(images.for_testing(2, VIEWS, slice(0, 12))))
    passes = [images.for_testing(2, VIEWS, rows) for rows in (slice(0, 6), slice(6, 12))]
    first, second = (torch.cat(found) for found in zip(*zip(*passes, strict=True), strict=True))
    assert torch.equal(torch.cat([first, second]), expected)
    aborted = images.for_testing(1, VIEWS, slice(6, 12))
    next(aborted)
    aborted.close()
    assert torch.equal(torch.cat(list(images.for_testing(5, VIEWS, slice(0, 12)))), expected)


def test_label_disagreement_is_measured_on_files_too(prepared):
    run = settings("kd")
    result, pictures = measure(create_model("small", STUDENT, 2, 32).eval(), load(prepared, 12, CPU), run, "cutmix", "")
    assert result.views == 12
    assert pictures.shape == (len(result.samples), 32, 32, 3)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"\0" * len(content)])
def test_a_broken_file_ends_the_run_in_one_line(tmp_path, damage, workers):
    tree = make_tree(tmp_path / "tree")
    file = tree / "train/n02 hell ä/bild_4.JPEG"
    size = file.stat().st_size
    file.write_bytes(damage(file.read_bytes()).ljust(size, b"\0")[:size])  # its size is still right
    prepare("tree", SPEC, tree, tmp_path, tmp_path / "tree.h5")
    data = load(tmp_path / "tree.h5", 12, CPU, workers)
    with pytest.raises(UserError) as caught:
        fit("run", settings(), data, new_student(settings(), data.train.labels), None, tmp_path / "c", "k", print)
    assert str(caught.value).startswith(f"{file}: cannot be read as an image: ")
    assert "\n" not in str(caught.value)


def test_resize_is_needed_for_files_and_refused_in_memory(prepared):
    plain = VIEWS.model_copy(update={"resize": None})
    with pytest.raises(UserError, match=r"base_view\.resize is needed"):
        predict_logits(create_model("small", STUDENT, 2, 32), load(prepared, 12, CPU).test, plain)
    with pytest.raises(UserError, match=r"base_view\.resize: only for image files"):
        make_batches(DATA.train, VIEWS)


# --- runs --------------------------------------------------------------------------------------------------


class StopError(Exception):
    """Raised from emit to interrupt a run."""


def _fit(prepared, file, workers, stop_after=None):
    run, events = settings("kd"), []
    torch.manual_seed(1)
    teacher = create_model("larger", TEACHER, 2, 32).eval().requires_grad_(False)
    data = load(prepared, 12, CPU, workers)
    learner = new_student(run, data.train.labels)

    def emit(event):
        events.append(event)
        if isinstance(event, RunUpdate) and event.epoch == stop_after:
            raise StopError

    progress = fit("run", run, data, learner, online_source(run, teacher), file, "k" * 64, emit)
    return progress, state_of(learner), [event.text for event in events if isinstance(event, Note)]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_curve_with_any_number_of_workers(prepared, tmp_path):
    expected, expected_state, _ = _fit(prepared, tmp_path / "undisturbed", 0)
    with pytest.raises(StopError):
        _fit(prepared, tmp_path / "c", 2, stop_after=1)
    progress, state, notes = _fit(prepared, tmp_path / "c", 0)
    assert notes == ["resumed after epoch 1"]
    assert progress.curve == expected.curve
    assert same(state, expected_state)


def _job(prepared, folder):
    torch.manual_seed(1)
    save_weights(create_model("larger", TEACHER, 2, 32), folder / "teacher.safetensors")
    return Job(
        name="seed 3",
        run=settings("kd_tlcutmix_pick"),
        budget=Budget(epochs=2, full_epochs=2, train_images=12, full_train_images=12, demo=False),
        dataset=prepared,
        teacher=folder / "teacher.safetensors",
        views_store=None,
        weights=folder / "weights.safetensors",
        log=folder / "log.json",
        work_dir=folder / "scratch",
        compute=Compute(
            device="cpu", threads=1, max_parallel_runs=None, replay_gb=1.0, loader_workers=2, processes_per_run=1
        ),
    )


def test_the_log_of_a_job_on_files_has_the_number_of_workers(prepared, tmp_path):
    job, events = _job(prepared, tmp_path), []
    run_job(job, events.append)
    found = read_record(job.log, RunLog)
    assert found.machine.loader_workers == 2
    assert found.settings == job.run
    assert found.settings.base_view.resize == RESIZE
    assert [point.epoch for point in found.curve] == [1, 2]
    assert found.curve[-1].top1 is not None
    assert isinstance(events[-1], Finished)


@pytest.mark.slow
def test_a_run_in_another_process_may_have_workers(prepared, tmp_path):
    job = _job(prepared, tmp_path)
    run_job(job, print)
    expected = read_record(job.log, RunLog)
    job.log.unlink()
    shutil.rmtree(job.work_dir)
    run_parallel("tree", [job], 1)
    assert read_record(job.log, RunLog).curve == expected.curve
    assert not job.work_dir.exists() or not list((job.work_dir / "runs").iterdir())
