"""Training batches in an order that is a function of (seed, batch number) and nothing else.

Global batch k holds positions k*B .. (k+1)*B - 1 of the run; row j of it is a video or f packed
images, decided by j alone, so that every batch has the same shapes. Videos and images are each read
in one seeded global shuffle per epoch, without end. A process reads the rows it owns; threads,
workers and processes change who does the work, never what a position holds.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from imagen_video.data.clip_source import ClipSource
from imagen_video.data.transforms import (
    BatchLayout,
    CaptionFn,
    Record,
    Row,
    collate,
    packed_row,
    video_row,
)
from imagen_video.data.worker_signals import outlast_signals

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How batches are made: the first four fields decide what a position holds.

    Attributes:
      batch_size: rows B of a global batch.
      seed: of the shuffles and of all that is drawn in reading.
      frames: frames of a row, so the images that one row packs.
      image_share: share of rows that pack images, in [0, 1]; round(image_share * B) of each batch,
        spread evenly over its rows. The paper publishes no ratio.
      microbatches: equal parts a batch is handed out in, stacked on a new leading axis if more
        than 1, for gradient accumulation.
      row_shards: equal parts of a (micro)batch that hold their captions with their rows. A batch
        that is split over n chips needs n, so that captions split evenly too and each is on the
        chip that holds its rows.
      num_workers: reading processes; 0 reads in this one.
      num_threads: reading threads of each; 0 reads only when a batch is asked for.
      prefetch: batches made ahead, for each worker.
      max_damaged: damaged records in a row that are passed over before giving up.
      echo: how often each batch is handed out, one time after the other, where reading is slower
        than training: data echoing (arXiv 1907.05550). Noise is drawn anew for every step.
    """

    batch_size: int
    seed: int = 0
    frames: int = 1
    image_share: float = 0.0
    microbatches: int = 1
    row_shards: int = 1
    num_workers: int = 0
    num_threads: int = 1
    prefetch: int = 2
    max_damaged: int = 100
    echo: int = 1

    def __post_init__(self):
        ones = ("batch_size", "frames", "microbatches", "row_shards")
        ones += ("max_damaged", "prefetch", "echo")
        for name, low in (
            dict.fromkeys(ones, 1) | {"seed": 0, "num_workers": 0, "num_threads": 0}
        ).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least {low}")
        if not 0 <= self.image_share <= 1:
            raise ValueError(f"image_share is {self.image_share}, must be in [0, 1]")
        if self.image_share and not any(self.image_rows):
            raise ValueError(
                f"image_share is {self.image_share}, less than half a row of batch_size"
                f" {self.batch_size}: must be 0 or larger"
            )

    @property
    def image_rows(self) -> tuple[bool, ...]:
        """Whether row j of every global batch packs images: as even a spread as there is."""
        B, count = self.batch_size, round(self.image_share * self.batch_size)
        return tuple((j + 1) * count // B > j * count // B for j in range(B))


class _Stream:
    """One source in its endless shuffle: a new order each epoch, every record once an epoch."""

    def __init__(self, source: ClipSource, *, name: str, seed: int, max_damaged: int):
        self._source, self._name, self._max_damaged = source, name, max_damaged
        self._seed = int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])
        self._order = grain.MapDataset.range(len(source)).shuffle(seed=self._seed).repeat()

    def read(self, position: int) -> tuple[Record, list[str]]:
        """Returns the record at `position`, or the next good one, and what was wrong before it."""
        damaged = []
        for p in range(position, position + self._max_damaged):
            index = int(self._order[p])
            rng = np.random.default_rng([self._seed, position])
            try:
                return self._source.read(index, rng=rng), damaged
            except Exception as error:  # a decoder may raise anything
                damaged.append(f"{self._name} record {index}: {type(error).__name__}: {error}")
                last = error
        raise ValueError(f"{len(damaged)} damaged records in a row; {damaged[-1]}") from last


class _RowReader:
    """Reads a process's rows, numbered through all its batches, in this process or a worker."""

    def __init__(self, config: PipelineConfig, rows: list[int], sources: dict[str, ClipSource]):
        self._config, self._rows = config, rows
        is_image = np.array(config.image_rows)
        self._is_image = is_image.tolist()
        # Which video, or which group of images, of its batch row j is.
        self._rank = (np.where(is_image, is_image.cumsum(), (~is_image).cumsum()) - 1).tolist()
        self._counts = {True: int(is_image.sum()), False: int((~is_image).sum())}
        self._streams = {
            name: _Stream(source, name=name, seed=config.seed, max_damaged=config.max_damaged)
            for name, source in sources.items()
        }

    def __call__(self, local: int) -> Row:
        k, i = divmod(int(local), len(self._rows))
        j = self._rows[i]
        is_image = self._is_image[j]
        position = k * self._counts[is_image] + self._rank[j]
        if is_image:
            f = self._config.frames
            reads = [self._streams["image"].read(position * f + slot) for slot in range(f)]
            row = packed_row([record for record, _ in reads])
        else:
            reads = [self._streams["video"].read(position)]
            row = video_row(reads[0][0])
        return row | {"row": j, "damaged": [note for _, notes in reads for note in notes]}


class Batches:
    """The batches of this process, an endless iterator that can say and set where it stands.

    A batch is a dict of numpy arrays; with microbatches u > 1 each has a leading axis u more, and
    m and b are those of a microbatch:
      video: float32 [b f h w 3] in [-1, 1].
      tokens: int32 [m n] of the captions, and whatever else `caption_fn` makes of them; m == b if
        there are no image rows.
      row: int32 [b], row of the global batch, 0..B-1, whatever process or microbatch it is in: what
        a row's noise is drawn from.
    and, only if some rows pack images, so that an all-video program knows it is one:
      is_image: bool [b].
      caption_index: int32 [b f], into the m captions of the global (micro)batch: those of all
        row shards one after the other.
      caption_id: int32 [m], row * frames + frame of the caption's first reader, whatever the layout
        (what a caption's dropout is drawn from); -1 for a slot that no frame reads.
    """

    _iterator: Any = None  # of what is read ahead
    _batch: Batch | None = None

    def __init__(
        self,
        config: PipelineConfig,
        *,
        caption_fn: CaptionFn,
        video_source: ClipSource | None = None,
        image_source: ClipSource | None = None,
        shards: Sequence[int] | None = None,
    ):
        """Lays out the batches; nothing is read before the first is asked for.

        Args:
          config: order, mixture and speed.
          caption_fn: captions to the arrays [m ...] that a batch holds of them, among them `tokens`
            int32 [m n], n fixed; must be fit to go to another process if there are workers.
          video_source: may be None if all rows pack images.
          image_source: may be None if none does.
          shards: which of the row shards this process reads, ascending; None for all.

        Raises:
          ValueError: a source is missing or empty, the rows cannot be cut into equal parts, or
            there are no such shards.
        """
        layout = BatchLayout.build(
            image_rows=config.image_rows,
            frames=config.frames,
            microbatches=config.microbatches,
            row_shards=config.row_shards,
            shards=range(config.row_shards) if shards is None else shards,
        )
        sources = {}
        for name, source, needed in (
            ("video", video_source, not all(config.image_rows)),
            ("image", image_source, any(config.image_rows)),
        ):
            if needed and (source is None or len(source) == 0):
                raise ValueError(
                    f"{name}_source is missing or empty, but with image_share"
                    f" {config.image_share} some rows of a batch of {config.batch_size} need it"
                )
            if needed:
                sources[name] = source
        self._config = config
        fields = ("batch_size", "seed", "image_share", "echo")
        fields += ("frames",) if "image" in sources else ()
        self._identity = {name: getattr(config, name) for name in fields} | {
            f"{name}_records": len(source) for name, source in sources.items()
        }
        rows = layout.groups.ravel().tolist()
        collate_fn = functools.partial(collate, layout=layout, caption_fn=caption_fn)
        self._dataset = (
            grain.MapDataset.range(2**62)  # more than any run reads; Grain rounds up what it cuts
            .map(_RowReader(config, rows, sources))
            .batch(len(rows), batch_fn=collate_fn)
        )
        self._next_batch = self._num_damaged = 0

    @property
    def num_damaged(self) -> int:
        """Damaged records replaced so far in the rows of this process."""
        return self._num_damaged

    def __getitem__(self, k: int) -> Batch:
        """Returns batch `k`, wherever the iterator stands."""
        batch = self._dataset[k // self._config.echo]
        batch.pop("damaged")
        return batch

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        first = self._next_batch % self._config.echo == 0
        if first or self._batch is None:
            self._batch = next(self._iterator)
            damaged = self._batch.pop("damaged")
            for note in damaged if first else ():  # counted before, if going on amid echoes
                logging.warning("batch %d: replaced %s", self._next_batch, note)
                self._num_damaged += 1
        self._next_batch += 1
        return dict(self._batch)

    def _start(self) -> Any:
        config = self._config
        threads = grain.ReadOptions(
            num_threads=config.num_threads,
            prefetch_buffer_size=config.prefetch if config.num_threads else 0,
        )
        # Whole batches are dealt to the workers in turn, so their number does not change the order.
        batches = self._dataset[self._next_batch // config.echo :].to_iter_dataset(threads)
        if config.num_workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its own flags when it starts workers
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=config.num_workers, per_worker_buffer_size=config.prefetch
                ),
                worker_init_fn=outlast_signals,
            )
        return iter(batches)

    def get_state(self) -> dict[str, Any]:
        """Returns the place in the run as JSON values: the same for any workers and processes.

        The count of damaged records in it is this process's own.
        """
        return self._identity | {"next_batch": self._next_batch, "damaged": self._num_damaged}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called.

        Raises:
          ValueError: the state is of another number of records, seed, batch size, echo, frames or
            share of images, so that the run could not go on as it began.
        """
        state = {"echo": 1} | state  # older checkpoints do not say it
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"data {name} is {value}, but the checkpoint's run had {state.get(name)}"
                )
        self.close()
        self._next_batch, self._num_damaged = state["next_batch"], state["damaged"]

    def close(self) -> None:
        """Ends reading threads and workers; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = self._batch = None

    def __del__(self):
        self.close()  # or its workers would outlive it
