"""One progress bar a stage, with the time left."""

import sys

from tqdm import tqdm


class ProgressBars:
    """Told after every sampling step; shows a bar a stage and keeps finished ones."""

    def __init__(self):
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
            self._stage = stage
            self._bar = tqdm(
                total=num_steps, initial=step, desc=f"{stage:>4}", unit="step", file=sys.stderr
            )
        self._bar.update(step - self._bar.n)
