"""Progress bars with the time left: one a stage, or one over captions."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm


class ProgressBars:
    """Told after every sampling step; shows a bar a stage and keeps finished ones.

    `opening` is called before the first bar: what it says never comes before an error that keeps
    the run from beginning.
    """

    def __init__(self, opening: Callable[[], None] = lambda: None):
        self._opening = opening
        self._bar: tqdm | None = None
        self._stage: str | None = None

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, *, stage: str, step: int, num_steps: int) -> None:
        """Moves the bar of `stage` to `step`."""
        if self._bar is None or stage != self._stage or step < self._bar.n:
            self.__exit__()
            if self._stage is None:
                self._opening()
            self._stage = stage
            self._bar = tqdm(
                total=num_steps, initial=step, desc=f"{stage:>4}", unit="step", file=sys.stderr
            )
        self._bar.update(step - self._bar.n)


class CaptionBar:
    """A bar over captions, with the real tokens embedded a second in this run."""

    def __init__(self):
        self._bar: tqdm | None = None
        self._started = time.monotonic()

    def __enter__(self) -> "CaptionBar":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, *, done: int, total: int, tokens: int) -> None:
        """Moves the bar to `done` captions of `total`."""
        if self._bar is None:
            self._bar = tqdm(total=total, unit="caption", file=sys.stderr)
        speed = tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
        self._bar.update(done - self._bar.n)
