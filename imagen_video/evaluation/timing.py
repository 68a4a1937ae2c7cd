"""Seconds of several ways to do one thing, measured in turn so that all share the same noise."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved_seconds(
    ways: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times each of `ways` once a round, after one untimed call that compiles it.

    A machine that is busy for a while then slows all of them down: ratios of medians hold where
    seconds do not.

    Args:
      ways: what to call, by name; a call returns when its work is done.
      rounds: at least 1.
      clock: seconds.

    Returns:
      Seconds of every round, by name.
    """
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} is below 1")
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
    return seconds


def times_faster(seconds: Mapping[str, list[float]], *, than: str) -> dict[str, float]:
    """Returns how many times each way is faster than the way `than`, by medians."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: medians[than] / median for name, median in medians.items()}
