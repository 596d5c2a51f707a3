"""Progress: plain lines where there is no terminal, bars where there is one."""

import io

import pytest
from rich.console import Console

from kdflow.core import progress
from kdflow.core.progress import Display, Note, RunUpdate


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


def test_a_plain_line_says_all():
    assert shown(update()) == "kd seed 0   10 %  epoch 3  loss 1.2346  test 71.50 %  1,234 images/s  left 1:15\n"


def test_what_is_not_known_yet_is_a_dash():
    line = shown(update(done=0, epoch=0, loss=None, top1=None, seconds_left=None, images_per_second=0.0))
    assert line == "kd seed 0    0 %  epoch 0  loss -  test -  0 images/s  left -\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (36061.0, "10:01:01")])
def test_the_time_left_as_a_clock(seconds, text):
    assert shown(update(seconds_left=seconds)).endswith(f"  left {text}\n")


@pytest.mark.parametrize("width", [10, 40])
def test_a_plain_line_is_not_wrapped(width):
    assert shown(update(), width=width).count("\n") == 1
    assert shown(Note("seed 0", "word " * 50), width=width).count("\n") == 1


def test_plain_lines_hold_no_control_codes():
    text = shown(update(), Note("seed 0", "going on"), update(done=100))
    assert "\x1b" not in text
    assert "\r" not in text


def test_many_updates_within_a_moment_are_one_line():
    assert len(shown(*(update(done=done) for done in range(1, 100))).splitlines()) == 1


def test_the_final_update_is_always_printed():
    lines = shown(*(update(done=done) for done in range(1, 101))).splitlines()
    assert len(lines) == 2
    assert " 100 % " in lines[1]


def test_every_run_has_its_own_pace():
    lines = shown(*(update(f"seed {seed}", done) for done in (1, 2) for seed in (0, 1, 2))).splitlines()
    assert [line[:9] for line in lines] == ["kd seed 0", "kd seed 1", "kd seed 2"]


def test_a_line_comes_again_after_a_while(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    assert len(shown(update(done=1), update(done=2), update(done=3)).splitlines()) == 3


def test_notes_are_never_held_back():
    text = shown(update(), Note("seed 0", "going on after epoch 3"), Note("seed 0", "again"))
    assert text.splitlines()[1:] == ["kd seed 0: going on after epoch 3", "kd seed 0: again"]


def test_a_terminal_shows_a_bar_for_every_run():
    text = shown(update("seed 0"), update("seed 1", 100), terminal=True, width=160)
    last = text[text.rindex("kd seed 0") :]
    assert "kd seed 1" in last
    assert "10 %" in last
    assert "100 %" in last
    assert "epoch 3  loss 1.2346  test 71.50 %" in last


def test_a_terminal_shows_notes_too():
    assert "kd seed 0: going on" in shown(Note("seed 0", "going on"), update(), terminal=True, width=160)


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_is_text(terminal):
    assert "[red]a[/red] [/b]" in shown(Note("seed 0", "[red]a[/red] [/b]"), terminal=terminal)


@pytest.mark.parametrize("terminal", [True, False])
def test_markup_in_a_name_is_text(terminal):
    assert "[red] [i]seed" in shown(update("[i]seed"), title="[red]", terminal=terminal, width=160)
