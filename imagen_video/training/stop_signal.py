"""How a training run is asked to end between two steps."""

import itertools
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

# Of this process, in all its runs: jax stops a job where this count is one more than the largest
# that any process had come to, and not later. Steps begin anew in another run, or far on in one
# resumed, and a signal that came between two loops would be lost.
_CALLS = itertools.count(1)


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a note that the loop reads between steps.

    A second Ctrl-C interrupts at once. With several processes jax itself listens for SIGTERM, and
    Ctrl-C is left alone. Only a main thread can listen; in another this does nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self) -> bool:
        """Whether to stop after this step; all processes ask after each, and get one answer."""
        if jax.process_count() > 1:
            if multihost_utils.reached_preemption_sync_point(next(_CALLS)):
                self.received = self.received or signal.SIGTERM
                return True
            return False
        return self.received is not None

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
