"""Replay: whoever comes first, and whatever lies there, a run ends with the same digits."""

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


def equal(a, b) -> bool:
    return a[0] == b[0] and same(a[1], b[1])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "replay").glob("*/*.h5")}


@pytest.mark.parametrize("method", SOME)
def test_in_float32_every_digit_is_that_of_an_online_run(tmp_path, method):
    expected = online(method, tmp_path)
    assert all(equal(replayed(method, tmp_path), expected) for _ in range(2))


@pytest.mark.parametrize("method", ["kd", "kd_tlcutmix_pick"])
def test_in_float16_the_digits_do_not_depend_on_who_came_first(tmp_path, method):
    first, second = (replayed(method, tmp_path, "float16") for _ in range(2))
    assert equal(first, second)
    expected = online(method, tmp_path)
    assert not equal(first, expected)
    losses = [[point.loss for point in curve] for curve, _ in (first, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_the_teacher_is_asked_once(tmp_path, monkeypatch):
    asked, shares, plain = [], {}, TeacherSource.compute

    def counting(self, views):
        asked.extend(len(images) for images in views.values())
        return plain(self, views)

    monkeypatch.setattr(TeacherSource, "compute", counting)
    for method in ("kd", "kd_tlcutmix", "kd_tlcutmix_pick", "kd_tlcutmix_pick_eval"):
        replayed(method, tmp_path)
        shares[method] = sum(asked) / (N * EPOCHS)
        asked.clear()
    # x, the first draw, the second draw, nothing more
    assert shares == {"kd": 1, "kd_tlcutmix": 1, "kd_tlcutmix_pick": 1, "kd_tlcutmix_pick_eval": 0}


def test_another_dtype_has_files_of_its_own(tmp_path):
    for _ in range(2):
        for dtype in ("float16", "float32"):
            replayed("kd", tmp_path, dtype)
    kept = files(tmp_path)
    assert sorted(kept) == sorted(
        f"epoch{epoch:04}-x-{dtype}.h5" for epoch in range(EPOCHS) for dtype in ("float16", "float32")
    )


def test_a_file_for_each_epoch_and_view(tmp_path):
    replayed("kd_tlcutmix_pick", tmp_path)
    assert sorted(files(tmp_path)) == sorted(
        f"epoch{epoch:04}-{view}-float32.h5" for epoch in range(EPOCHS) for view in ("x", "cutmix-0", "cutmix-1")
    )
    assert teacher_views(METHODS["kd_tlcutmix_pick"]) == ("x", "cutmix/0", "cutmix/1")


def test_features_are_asked_online(tmp_path):
    replayed("crd_kd_tlcutmix_pick", tmp_path)
    assert {name.split("-", 1)[1] for name in files(tmp_path)} == {"cutmix-0-float32.h5", "cutmix-1-float32.h5"}


def _gone(path: Path) -> None:
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


@pytest.mark.parametrize("damage", [_gone, _flipped, _short, _empty, _of_another_epoch])
def test_what_is_missing_or_damaged_is_asked_with_the_same_digits(tmp_path, damage):
    expected = replayed("kd_tlcutmix_pick", tmp_path, "float16")
    (file,) = (tmp_path / "replay").glob("*/epoch0001-cutmix-1-float16.h5")
    before = file.read_bytes()
    damage(file)
    damaged = file.read_bytes() if file.exists() else None
    notes = []
    run, source = replay("kd_tlcutmix_pick", tmp_path, notes.append, "float16")
    assert equal(trained(run, source, tmp_path / "again"), expected)
    if damaged is None:
        assert notes == [] and file.read_bytes() == before  # filled again
    else:
        (note,) = notes
        assert note.startswith(f"replay: {file}: ") and "\n" not in note and "left as it is" in note
        assert file.read_bytes() == damaged


def test_another_seed_lies_on_another_shelf(tmp_path):
    shelves = {replay("kd", tmp_path, print, seed=seed)[1].cache.folder for seed in (3, 4, 4)}
    assert len(shelves) == 2


def test_beyond_the_limit_nothing_is_kept(tmp_path):
    replayed("kd", tmp_path / "other")
    size, notes = len(files(tmp_path / "other")["epoch0000-x-float32.h5"]), []
    run, source = replay("kd", tmp_path, notes.append, limit=size + N * 4 * 4 + HEADER)
    assert equal(trained(run, source, tmp_path / "run"), online("kd", tmp_path))
    assert sorted(files(tmp_path)) == ["epoch0000-x-float32.h5", "epoch0001-x-float32.h5"]
    assert notes == [f"replay: epoch 3 is not kept: {tmp_path / 'replay'} is full"]


def test_room_is_made_of_what_nobody_holds(tmp_path):
    shelves = [replay("kd", tmp_path, print, seed=seed)[1].cache for seed in (1, 2, 3, 4)]
    for age, shelf in enumerate(reversed(shelves)):
        (shelf.folder / "epoch0000-x.h5").write_bytes(bytes(1000))
        os.utime(shelf.folder / "lock", (10_000 - age, 10_000 - age))
    oldest, held, younger, mine = shelves
    oldest.lock.close()
    younger.lock.close()
    mine.limit = 4000
    assert mine.has_room(0) and oldest.folder.exists()
    assert mine.has_room(500)
    assert [shelf.folder.exists() for shelf in shelves] == [False, True, True, True]
    assert mine.has_room(2000)
    assert [shelf.folder.exists() for shelf in shelves] == [False, True, False, True]
    assert not mine.has_room(2001)
    assert held.folder.exists() and mine.folder.exists()


def test_several_at_once(tmp_path):
    methods = ("kd", "kd_tlcutmix", "kd_tlcutmix_pick", "kd_tlcutmix_pick_eval")
    notes = []
    with ThreadPoolExecutor(4) as pool:
        done = []
        for method in methods:  # weights are drawn one after the other: torch's generator is all threads'
            run, source = replay(method, tmp_path, notes.append)
            learner = new_student(run, DATA.train.labels)
            done.append((trained, run, source, tmp_path / f"run-{method}", learner))
        done = [pool.submit(*work) for work in done]
    for method, result in zip(methods, done, strict=True):
        assert equal(result.result(), online(method, tmp_path)), method
    assert len(files(tmp_path)) == 3 * EPOCHS and notes == []
