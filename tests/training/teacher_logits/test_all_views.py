"""The store of all views has the teacher's logits of each view, however often filling was interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import key_of, online, replay, trained
from small import DATA, METHODS, VIEWS, batches_of, run_of, teacher_for

from kdflow.core.errors import UserError
from kdflow.training.run import teacher_extractor
from kdflow.training.teacher_logits import Online, ViewCounts, all_views, store
from kdflow.training.teacher_logits.all_views import (
    StoredViews,
    fill,
    read_views,
    store_rows,
    store_shape,
    views_per_image,
)

RUN = run_of(METHODS["kd"])
TEACHER = teacher_for(METHODS["kd"])


class StopError(Exception):
    """Raised as an interruption would be."""


def filled(path: Path, dtype: str = "float32", stop: int | None = None, teacher=TEACHER) -> list[int]:
    """Fill a store, up to image `stop`; return the reported numbers of images."""
    reported = []

    def on_progress(done: int) -> None:
        reported.append(done)
        if stop is not None and done >= stop:
            raise StopError

    fill(path, teacher, DATA.train, RUN, dtype, key_of(RUN), on_progress)
    return reported


def opened(path: Path, dtype: str = "float32") -> np.ndarray:
    return read_views(path, RUN, dtype, key_of(RUN))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("views") / "views.h5"
    assert filled(path) == [0, 16, 20]
    return path


@given(crop=st.integers(0, 4), flip=st.booleans(), images=st.integers(1, 3))
def test_every_view_has_a_separate_row(crop, flip, images):
    base_view, side = VIEWS.model_copy(update={"crop": crop, "flip": flip}), 2 * crop + 1
    views = [
        (i, f, y, x) for i in range(images) for f in range(1 + flip) for y in range(side) for x in range(side)
    ]  # in the order of the store
    index, flips = torch.tensor([v[0] for v in views]), torch.tensor([bool(v[1]) for v in views])
    shifts = torch.tensor([v[2:] for v in views])
    assert store_rows(index, shifts, flips, base_view).tolist() == list(range(len(views)))
    assert len(views) == images * views_per_image(base_view)
    assert views_per_image(VIEWS.model_copy(update={"crop": 4})) == 162


def test_a_row_has_the_teachers_logits_of_its_view(whole):
    logits = opened(whole)
    assert store_shape(RUN) == logits.shape == (20 * 50, 4)
    for batch in batches_of(RUN):
        plan = batch.plan
        stored = torch.from_numpy(logits[store_rows(plan.index, plan.shift, plan.flip, VIEWS).numpy()])
        torch.testing.assert_close(stored, TEACHER(batch.x), rtol=1e-5, atol=1e-5)


def test_float16_is_float32_rounded(whole, tmp_path):
    filled(tmp_path / "half.h5", "float16")
    assert np.array_equal(opened(tmp_path / "half.h5", "float16"), opened(whole).astype(np.float16))


def test_filling_resumes_after_an_interruption(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(all_views, "BLOCK", 3)
    path = tmp_path / "views.h5"
    for stop in (0, 6, 7, 18):
        with pytest.raises(StopError):
            filled(path, stop=stop)
        with pytest.raises(UserError, match="fills it again"):
            opened(path)  # incomplete
    assert filled(path) == [18, 20]
    assert np.allclose(opened(path), opened(whole), rtol=1e-5, atol=1e-5)
    assert list(tmp_path.iterdir()) == [path]


def source_of(path: Path, method: str, dtype: str = "float32") -> tuple:
    run = run_of(METHODS[method])
    return run, StoredViews(Online(teacher_extractor(run, teacher_for(run.method))), opened(path, dtype), run.base_view)


def counted(source: StoredViews) -> list[ViewCounts]:
    """Return a list that gets the counts of each epoch."""
    counts, take = [], source.take_counts
    source.take_counts = lambda: counts.append(take()) or counts[-1]
    return counts


@pytest.mark.parametrize(
    ("method", "strong_views"), [("kd", 0), ("kd_tlcutmix_pick", 2), ("dist_tlcutmix", 1), ("ctkd", 0)]
)
def test_a_run_is_close_to_an_online_run_and_computes_strong_views_only(whole, tmp_path, method, strong_views):
    run, source = source_of(whole, method)
    counts = counted(source)
    curve, _ = trained(run, source, tmp_path / "run")
    expected, _ = online(method, tmp_path)
    assert [point.loss for point in curve] == pytest.approx([point.loss for point in expected], rel=1e-4)
    assert counts == [ViewCounts(20 * strong_views, 20)] * 3


def test_with_replay_a_second_run_computes_no_logits(whole, tmp_path):
    curves = []
    for i in range(2):
        run, replayed = replay("kd_tlcutmix_pick", tmp_path, pytest.fail)
        source = StoredViews(replayed, opened(whole), run.base_view)
        counts = counted(source)
        curves.append(trained(run, source, tmp_path / f"run{i}")[0])
        assert counts == [ViewCounts(40, 20), ViewCounts(0, 60)][i : i + 1] * 3
    assert curves[0] == curves[1]
    expected, _ = online("kd_tlcutmix_pick", tmp_path)
    assert [point.loss for point in curves[0]] == pytest.approx([point.loss for point in expected], rel=1e-4)


def test_features_are_computed(whole, tmp_path):
    run, source = source_of(whole, "at_kd")
    curve, _ = trained(run, source, tmp_path / "run")
    assert curve == online("at_kd", tmp_path)[0]


def test_a_store_of_another_teacher_or_view_is_refused(whole):
    for key, expected in (
        ({**key_of(RUN), "teacher_sha256": "0" * 64}, "teacher_sha256 is tttt"),
        ({**key_of(RUN), "base_view": "none"}, 'base_view is {"crop":2'),
    ):
        with pytest.raises(UserError) as caught:
            read_views(whole, RUN, "float32", key)
        message = str(caught.value)
        assert expected in message and message.endswith("`dvc repro -f logits` fills it again") and "\n" not in message
    with pytest.raises(UserError, match="no such store; `dvc repro logits` fills it"):
        read_views(whole.with_name("none.h5"), RUN, "float32", key_of(RUN))
    with pytest.raises(UserError, match="store of other logits"):
        opened(whole, "float16")


def test_the_extractor_returns_the_logits_of_the_model(whole):
    x = batches_of(RUN)[0].x
    assert torch.equal(teacher_extractor(RUN, TEACHER)(x).logits, TEACHER(x))
    assert store.read_store(whole, store_shape(RUN), "float32", key_of(RUN)).flags.writeable is False
