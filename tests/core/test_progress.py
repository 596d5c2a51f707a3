"""Progress: bars on a terminal, plain lines otherwise, and the pace of a process."""

import io

import pytest
from rich.console import Console

from kdflow.core import progress
from kdflow.core.progress import Display, Note, Pace, RunUpdate, StoreMeter, track


def update(name="seed 0", done=10, **changes):
    values = {
        "steps": 100,
        "epoch": 3,
        "loss": 1.23456,
        "top1": 71.5,
        "images_per_second": 1234.4,
        "seconds_left": 75.0,
    }
    return RunUpdate(name=name, done=done, **{**values, **changes})


def shown(*events, terminal=False, width=80, title="kd"):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width)
    with Display(title, console) as display:
        for event in events:
            display.show(event)
    return out.getvalue()


def test_a_plain_line_has_all_values():
    assert shown(update()) == "kd seed 0   10 %  epoch 3  loss 1.2346  test 71.50 %  1,234 images/s  left 1:15\n"


def test_an_unknown_value_is_a_dash():
    line = shown(update(done=0, epoch=0, loss=None, top1=None, seconds_left=None, images_per_second=0.0))
    assert line == "kd seed 0    0 %  epoch 0  loss -  test -  0 images/s  left -\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (36061.0, "10:01:01")])
def test_the_time_left_is_shown_as_a_clock(seconds, text):
    assert shown(update(seconds_left=seconds)).endswith(f"  left {text}\n")


@pytest.mark.parametrize("width", [10, 40])
def test_a_plain_line_is_not_wrapped(width):
    assert shown(update(), width=width).count("\n") == 1
    assert shown(Note("seed 0", "word " * 50), width=width).count("\n") == 1


def test_plain_lines_hold_no_control_codes():
    text = shown(update(), Note("seed 0", "resumed"), update(done=100))
    assert "\x1b" not in text
    assert "\r" not in text


def test_many_updates_within_a_moment_are_one_line():
    assert len(shown(*(update(done=done) for done in range(1, 100))).splitlines()) == 1


def test_the_final_update_is_always_printed():
    lines = shown(*(update(done=done) for done in range(1, 101))).splitlines()
    assert len(lines) == 2
    assert " 100 % " in lines[1]


def test_the_lines_of_each_run_are_limited_separately():
    lines = shown(*(update(f"seed {seed}", done) for done in (1, 2) for seed in (0, 1, 2))).splitlines()
    assert [line[:9] for line in lines] == ["kd seed 0", "kd seed 1", "kd seed 2"]


def test_a_line_is_printed_again_after_a_while(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    assert len(shown(update(done=1), update(done=2), update(done=3)).splitlines()) == 3


def test_notes_are_always_printed():
    text = shown(update(), Note("seed 0", "resumed after epoch 3"), Note("seed 0", "again"))
    assert text.splitlines()[1:] == ["kd seed 0: resumed after epoch 3", "kd seed 0: again"]


def test_a_terminal_shows_a_bar_for_every_run():
    text = shown(update("seed 0"), update("seed 1", 100), terminal=True, width=160)
    last = text[text.rindex("kd seed 0") :]
    assert "kd seed 1" in last
    assert "10 %" in last
    assert "100 %" in last
    assert "epoch 3  loss 1.2346  test 71.50 %" in last


def test_a_terminal_shows_notes_too():
    assert "kd seed 0: resumed" in shown(Note("seed 0", "resumed"), update(), terminal=True, width=160)


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_is_text(terminal):
    assert "[red]a[/red] [/b]" in shown(Note("seed 0", "[red]a[/red] [/b]"), terminal=terminal)


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_in_a_name_is_text(terminal):
    assert "[red] [i]seed" in shown(update("[i]seed"), title="[red]", terminal=terminal, width=160)


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of `progress`; the test advances its seconds."""
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_pace_is_measured_from_the_first_count_on(clock):
    pace = Pace(50)
    assert (pace.seconds, pace.per_second, pace.seconds_left) == (0, 0, None)
    pace.update(10)
    assert (pace.seconds, pace.per_second, pace.seconds_left) == (0, 0, None)
    clock[0] += 4
    assert pace.seconds == 0
    pace.update(10)
    assert (pace.seconds, pace.per_second, pace.seconds_left) == (4, 0, None)
    clock[0] += 6
    pace.update(30)
    assert (pace.done, pace.seconds, pace.per_second, pace.seconds_left) == (30, 10, 2, 10)
    pace.update(50)
    assert pace.seconds_left == 0


def test_a_store_shows_its_progress(clock):
    out = io.StringIO()
    meter = StoreMeter(100, Display("logits", Console(file=out, width=80)))
    meter.done(20)
    clock[0] += 20
    meter.done(40)
    lines = out.getvalue().splitlines()
    assert lines == [
        "logits views   20 %  20 of 100 images  left -",
        "logits views   40 %  40 of 100 images  left 1:00",
    ]


def test_tracked_results_are_passed_on(clock, capsys):
    steps = []
    for images in track("train", [30, 10], 40):
        clock[0] += 30
        steps.append(images)
    assert steps == [30, 10]
    assert capsys.readouterr().out.splitlines() == [
        "prepare train   75 %  30 of 40 images  left 0:10",
        "prepare train  100 %  40 of 40 images  left 0:00",
    ]
