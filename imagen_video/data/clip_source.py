"""What a training run reads from: random access to clips."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from imagen_video.data.transforms import Record, Transform


@runtime_checkable
class ClipSource(Protocol):
    """Random access to clips. What it draws (window, crop) comes from the generator given to it."""

    def __len__(self) -> int: ...

    def read(self, index: int, *, rng: np.random.Generator) -> Record:
        """Returns record `index`; an exception marks the record as damaged."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """A `ClipSource` over whole records, such as `tfds.data_source` or a list.

    Attributes:
      records: has a length and, by index, records (see transforms.py).
      transforms: applied in order, all with the generator of the position.
    """

    records: Any
    transforms: tuple[Transform, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int, *, rng: np.random.Generator) -> Record:
        """Reads and transforms record `index`."""
        record = self.records[index]
        for transform in self.transforms:
            record = transform(record, rng)
        return record
