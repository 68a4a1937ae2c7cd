"""How far a run is: a live line on a terminal, plain lines in a log file."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows step, loss, steps per second and time left.

    On a terminal one line is redrawn at every step; elsewhere each report prints a line of its own.
    Speed is measured from the first step that ends, so that compilation is left out, and averaged
    over reports with a weight of 0.5 for the last.
    """

    def __init__(
        self,
        *,
        start: int,
        total: int,
        enabled: bool = True,
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts at step `start` of `total`.

        Args:
          start: steps already done.
          total: steps of the run.
          enabled: False shows nothing, for all processes but the first.
          stream: text file to write to; None is standard error.
          clock: seconds, from any origin.
        """
        self._stream = stream or sys.stderr
        self._enabled, self._total, self._clock = enabled, total, clock
        self._speed = self._mark = self._loss = None
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, file=self._stream, unit="step", dynamic_ncols=True
            )

    def advance(self, step: int) -> None:
        """Notes that `step` steps are done."""
        if self._mark is None:
            self._mark = (step, self._clock())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, loss: float) -> None:
        """Shows the loss, half the last report's mean and half what was shown before."""
        if not self._enabled:
            return
        if math.isfinite(loss):
            self._loss = loss if self._loss is None else 0.5 * self._loss + 0.5 * loss
        shown = "none finite" if self._loss is None else f"{self._loss:.4g}"
        self._measure(step)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {shown}", refresh=True)
            return
        pace = ""
        if self._speed:
            left = time_left((self._total - step) / self._speed)
            pace = f"  {self._speed:.3g} steps/s  {left} left"
        print(f"step {step}/{self._total}  loss {shown}{pace}", file=self._stream, flush=True)

    def _measure(self, step: int) -> None:
        if self._mark is None or step <= self._mark[0]:
            return
        now = self._clock()
        speed = (step - self._mark[0]) / max(now - self._mark[1], 1e-9)
        self._speed = speed if self._speed is None else 0.5 * self._speed + 0.5 * speed
        self._mark = (step, now)

    def close(self) -> None:
        """Ends the live line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def time_left(seconds: float) -> str:
    """Returns "42 s", "3 min 20 s", "5 h 07 min" or "2 d 05 h"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600:02d} h"
