"""Speed and time left on a clock that the test winds."""

import io
import math

import pytest

from imagen_video.training.progress import Progress, time_left


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_tell_loss_speed_and_time_left():
    stream, clock = io.StringIO(), Clock()
    with Progress(start=0, total=1000, stream=stream, clock=clock) as progress:
        clock.now += 60  # compilation, before the first step ends
        for step in range(1, 101):
            progress.advance(step)
            if step == 1:
                continue
            clock.now += 0.5
        progress.report(100, 4.0)
        for step in range(101, 201):
            progress.advance(step)
            clock.now += 0.25
        progress.report(200, 2.0)
    first, second = stream.getvalue().splitlines()
    assert first == "step 100/1000  loss 4  2 steps/s  7 min 30 s left"
    # (4 + 2) / 2 of loss; (2 + 4) / 2 steps a second, 800 steps to go.
    assert second == "step 200/1000  loss 3  3 steps/s  4 min 27 s left"


def test_a_loss_that_is_not_finite_is_left_out():
    stream = io.StringIO()
    with Progress(start=0, total=10, stream=stream) as progress:
        progress.report(1, math.nan)
        progress.report(2, 1.5)
        progress.report(3, math.inf)
    shown = [line.split("loss ")[1].split("  ")[0] for line in stream.getvalue().splitlines()]
    assert shown == ["none finite", "1.5", "1.5"]


def test_a_terminal_gets_one_live_line():
    stream = Terminal()
    with Progress(start=40, total=50, stream=stream) as progress:
        for step in range(41, 51):
            progress.advance(step)
            progress.report(step, 0.25)
    shown = stream.getvalue()
    assert "50/50" in shown and "loss 0.25" in shown and shown.count("\n") == 1


def test_nothing_is_shown_where_disabled():
    for stream in (Terminal(), io.StringIO()):
        with Progress(start=0, total=2, stream=stream, enabled=False) as progress:
            progress.advance(1)
            progress.report(1, 1.0)
        assert stream.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [(42.4, "42 s"), (200.0, "3 min 20 s"), (18_420.0, "5 h 07 min"), (190_800.0, "2 d 05 h")],
)
def test_time_left(seconds, text):
    assert time_left(seconds) == text
