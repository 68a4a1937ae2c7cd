"""Random numbers that stay the same for ever, whatever the version of numpy.

numpy promises the raw stream of a bit generator, but not what `Generator.choice` or `.normal`
make of it, so the few distributions the dataset needs are written out here.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """A stream of draws that depends on its key alone."""

    def __init__(self, *key: int | str):
        """Starts the stream of `key`, a few strings and integers."""
        digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Returns a float in [low, high): the upper 53 of 64 random bits, scaled."""
        return low + (high - low) * ((self._bits.random_raw() >> 11) * 2.0**-53)

    def chance(self, probability: float) -> bool:
        """Returns True with `probability`."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """Returns one of `items`, each equally likely (to within 2**-53)."""
        return items[int(self.uniform() * len(items))]
