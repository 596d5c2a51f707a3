"""A run with replay has the same digits whichever run is first and whichever files exist."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import online, replay, replayed, trained
from small import DATA, METHODS, same

from kdflow.training.step import new_student, teacher_views
from kdflow.training.teacher_logits import TeacherSource
from kdflow.training.teacher_logits.store import HEADER

N, EPOCHS = len(DATA.train), 3
SOME = ("kd", "kd_tlcutmix", "kd_tlcutmix_pick", "kd_tlmixup", "crd_kd_tlcutmix_pick", "kd_cutmix_interpolated")
ON_LOGITS = ("dist_tlcutmix", "ctkd_tlcutmix", "dkd_standardised")


def equal(a, b) -> bool:
    return a[0] == b[0] and same(a[1], b[1])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "replay").glob("*/*.h5")}


@pytest.mark.parametrize("method", SOME + ON_LOGITS)
def test_in_float32_every_digit_is_that_of_an_online_run(tmp_path, method):
    expected = online(method, tmp_path)
    assert all(equal(replayed(method, tmp_path), expected) for _ in range(2))


@pytest.mark.parametrize("method", ["kd", "kd_tlcutmix_pick"])
def test_in_float16_the_first_run_and_the_second_have_the_same_digits(tmp_path, method):
    first, second = (replayed(method, tmp_path, "float16") for _ in range(2))
    assert equal(first, second)
    expected = online(method, tmp_path)
    assert not equal(first, expected)
    losses = [[point.loss for point in curve] for curve, _ in (first, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_teacher_logits_are_computed_once(tmp_path, monkeypatch):
    batches, views_per_image, compute = [], {}, TeacherSource.compute

    def counting(self, views):
        batches.extend(len(images) for images in views.values())
        return compute(self, views)

    monkeypatch.setattr(TeacherSource, "compute", counting)
    for method in ("kd", "kd_tlcutmix", "kd_tlcutmix_pick", "kd_tlcutmix_pick_eval"):
        replayed(method, tmp_path)
        views_per_image[method] = sum(batches) / (N * EPOCHS)
        batches.clear()
    # x; the first draw; the second draw; nothing
    assert views_per_image == {"kd": 1, "kd_tlcutmix": 1, "kd_tlcutmix_pick": 1, "kd_tlcutmix_pick_eval": 0}


def test_each_dtype_has_separate_files(tmp_path):
    for _ in range(2):
        for dtype in ("float16", "float32"):
            replayed("kd", tmp_path, dtype)
    assert sorted(files(tmp_path)) == sorted(
        f"epoch{epoch:04}-x-{dtype}.h5" for epoch in range(EPOCHS) for dtype in ("float16", "float32")
    )


def test_there_is_a_file_for_each_epoch_and_view(tmp_path):
    replayed("kd_tlcutmix_pick", tmp_path)
    assert sorted(files(tmp_path)) == sorted(
        f"epoch{epoch:04}-{view}-float32.h5" for epoch in range(EPOCHS) for view in ("x", "cutmix-0", "cutmix-1")
    )
    assert teacher_views(METHODS["kd_tlcutmix_pick"]) == ("x", "cutmix/0", "cutmix/1")


def test_features_are_computed(tmp_path):
    replayed("crd_kd_tlcutmix_pick", tmp_path)
    assert {name.split("-", 1)[1] for name in files(tmp_path)} == {"cutmix-0-float32.h5", "cutmix-1-float32.h5"}


def _removed(path: Path) -> None:
    path.unlink()


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another_epoch(path: Path) -> None:
    path.write_bytes(path.with_name(path.name.replace("0001", "0002")).read_bytes())


@pytest.mark.parametrize("damage", [_removed, _flipped, _short, _empty, _of_another_epoch])
def test_missing_or_damaged_logits_are_computed_with_the_same_digits(tmp_path, damage):
    expected = replayed("kd_tlcutmix_pick", tmp_path, "float16")
    (file,) = (tmp_path / "replay").glob("*/epoch0001-cutmix-1-float16.h5")
    before = file.read_bytes()
    damage(file)
    damaged = file.read_bytes() if file.exists() else None
    notes = []
    run, source = replay("kd_tlcutmix_pick", tmp_path, notes.append, "float16")
    assert equal(trained(run, source, tmp_path / "again"), expected)
    if damaged is None:
        assert notes == [] and file.read_bytes() == before  # written again
    else:
        (note,) = notes
        assert note.startswith(f"replay: {file}: ") and "\n" not in note and "left as it is" in note
        assert file.read_bytes() == damaged


def test_another_seed_has_another_folder(tmp_path):
    folders = {replay("kd", tmp_path, print, seed=seed)[1].cache.folder for seed in (3, 4, 4)}
    assert len(folders) == 2


def test_nothing_is_written_beyond_the_limit(tmp_path):
    replayed("kd", tmp_path / "other")
    size, notes = len(files(tmp_path / "other")["epoch0000-x-float32.h5"]), []
    run, source = replay("kd", tmp_path, notes.append, limit=size + N * 4 * 4 + HEADER)
    assert equal(trained(run, source, tmp_path / "run"), online("kd", tmp_path))
    assert sorted(files(tmp_path)) == ["epoch0000-x-float32.h5", "epoch0001-x-float32.h5"]
    assert notes == [f"replay: epoch 3 is not kept: {tmp_path / 'replay'} is full"]


def test_unused_folders_are_removed_to_make_room_the_oldest_first(tmp_path):
    caches = [replay("kd", tmp_path, print, seed=seed)[1].cache for seed in (1, 2, 3, 4)]
    for age, cache in enumerate(reversed(caches)):
        (cache.folder / "epoch0000-x.h5").write_bytes(bytes(1000))
        os.utime(cache.folder / "lock", (10_000 - age, 10_000 - age))
    oldest, in_use, younger, newest = caches
    oldest.lock.close()
    younger.lock.close()
    newest.limit = 4000
    assert newest.has_room(0) and oldest.folder.exists()
    assert newest.has_room(500)
    assert [cache.folder.exists() for cache in caches] == [False, True, True, True]
    assert newest.has_room(2000)
    assert [cache.folder.exists() for cache in caches] == [False, True, False, True]
    assert not newest.has_room(2001)
    assert in_use.folder.exists() and newest.folder.exists()


def test_several_runs_at_once(tmp_path):
    methods = ("kd", "kd_tlcutmix", "kd_tlcutmix_pick", "kd_tlcutmix_pick_eval")
    notes = []
    with ThreadPoolExecutor(4) as pool:
        calls = []
        for method in methods:  # weights are drawn one after the other, since threads share torch's generator
            run, source = replay(method, tmp_path, notes.append)
            learner = new_student(run, DATA.train.labels)
            calls.append((trained, run, source, tmp_path / f"run-{method}", learner))
        futures = [pool.submit(*call) for call in calls]
    for method, future in zip(methods, futures, strict=True):
        assert equal(future.result(), online(method, tmp_path)), method
    assert len(files(tmp_path)) == 3 * EPOCHS and notes == []
