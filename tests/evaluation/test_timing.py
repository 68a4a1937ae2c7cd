"""Interleaved timing: who is called when, and ratios of medians."""

import pytest

from imagen_video.evaluation.timing import interleaved_seconds, times_faster


def test_ways_take_turns_after_a_call_that_is_not_timed():
    now, calls = [0.0], []

    def way(name, seconds):
        def run():
            calls.append(name)
            # The first call compiles; the second round meets a busy machine.
            slow = {1: 100.0, 3: 10.0}.get(calls.count(name), 1.0)
            now[0] += seconds * slow

        return run

    seconds = interleaved_seconds(
        {"slow": way("slow", 6.0), "fast": way("fast", 2.0)}, rounds=3, clock=lambda: now[0]
    )
    assert "".join(name[0] for name in calls) == "sf" * 4
    assert seconds == {
        "slow": pytest.approx([6.0, 60.0, 6.0]),
        "fast": pytest.approx([2.0, 20.0, 2.0]),
    }
    assert times_faster(seconds, than="slow") == {"slow": 1.0, "fast": pytest.approx(3.0)}
    with pytest.raises(ValueError, match="rounds: 0 is below 1"):
        interleaved_seconds({}, rounds=0)
