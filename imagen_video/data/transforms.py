"""From a record of a source to a row of a training batch, in numpy.

A record is a dict: `video` uint8 [f h w 3], `caption` str, `is_image` bool (then f = 1).
A row is a dict: `video` float32 [f h w 3] in [-1, 1], `captions` (one for a video, f for packed
images), `is_image` bool. Rows become the arrays of a batch in `collate`. Everything random is drawn
from the generator that is handed in, so that a row is a function of its position in the run.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

Record = Mapping[str, Any]
Row = dict[str, Any]
Transform = Callable[[Record, np.random.Generator], Record]
# Captions to what a batch holds of them: arrays by name, a row a caption, `tokens` among them.
CaptionFn = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a clip that one training example sees, in the clip's own frames and pixels.

    Attributes:
      start: first frame.
      frames: how many frames, counted after skipping.
      frame_step: distance between them in the clip; 8 takes 3 fps from 24 fps.
      top: first pixel row.
      left: first pixel column.
      height: pixel rows.
      width: pixel columns.
    """

    start: int
    frames: int
    frame_step: int
    top: int
    left: int
    height: int
    width: int

    def cut(
        self, video: UInt8[np.ndarray, "f h w c"]
    ) -> UInt8[np.ndarray, "frames height width c"]:
        """Returns the window of `video`, a view: one crop for all frames."""
        stop = self.start + (self.frames - 1) * self.frame_step + 1
        rows = slice(self.top, self.top + self.height)
        columns = slice(self.left, self.left + self.width)
        return video[self.start : stop : self.frame_step, rows, columns]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWindow:
    """Draws which frames and which crop of a clip are trained on, uniformly.

    Frame skipping (section 3), crops (2.3) and short clips (3.3) are the way of arXiv 2210.02303
    to train on less than a whole clip; that draws are uniform is our choice.

    Attributes:
      frames: frames of a row, after skipping. A still image always has one.
      frame_step: every how many frames of the clip one is taken.
      start_multiple: the first frame is a multiple of this.
      crop: (height, width) in pixels, or None for whole frames.
      crop_multiple: the crop's corner and size are multiples of this. With a stage's spatial
        factor here, the crop's low-resolution version is a crop of the clip's.
    """

    frames: int
    frame_step: int = 1
    start_multiple: int = 1
    crop: tuple[int, int] | None = None
    crop_multiple: int = 1

    def __post_init__(self):
        for name in ("frames", "frame_step", "start_multiple", "crop_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.crop is not None and any(n < 1 or n % self.crop_multiple for n in self.crop):
            raise ValueError(
                f"crop is {self.crop}, must be positive multiples of crop_multiple,"
                f" {self.crop_multiple}"
            )

    def draw(
        self, rng: np.random.Generator, *, frames: int, height: int, width: int, is_image: bool
    ) -> Window:
        """Draws a window in a clip of this size. A source may render that window alone.

        Raises:
          ValueError: the clip is too short or too small.
        """
        count, step = (1, 1) if is_image else (self.frames, self.frame_step)
        span = (count - 1) * step + 1
        crop_height, crop_width = self.crop or (height, width)
        if span > frames or crop_height > height or crop_width > width:
            raise ValueError(
                f"a clip of {frames}x{height}x{width} (frames x height x width) holds no window of"
                f" {span}x{crop_height}x{crop_width}"
            )
        return Window(
            start=_draw_multiple(rng, frames - span, 1 if is_image else self.start_multiple),
            frames=count,
            frame_step=step,
            top=_draw_multiple(rng, height - crop_height, self.crop_multiple),
            left=_draw_multiple(rng, width - crop_width, self.crop_multiple),
            height=crop_height,
            width=crop_width,
        )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        """Cuts a drawn window out of a whole record."""
        frames, height, width, _ = record["video"].shape
        window = self.draw(
            rng, frames=frames, height=height, width=width, is_image=bool(record["is_image"])
        )
        return {**record, "video": window.cut(record["video"])}


def _draw_multiple(rng: np.random.Generator, largest: int, multiple: int) -> int:
    """A multiple of `multiple`, uniform over those in [0, largest]."""
    return multiple * int(rng.integers(0, largest // multiple + 1))


def to_float(video: UInt8[np.ndarray, "f h w c"]) -> Float[np.ndarray, "f h w c"]:
    """Maps grey levels 0..255 to float32 in [-1, 1]: x = level / 127.5 - 1."""
    x = video.astype(np.float32)
    x /= np.float32(127.5)
    x -= np.float32(1.0)
    return x


def video_row(record: Record) -> Row:
    """Makes a row of a video record: all its frames read one caption."""
    if record["is_image"]:
        raise ValueError("a video row was given a still image")
    video = to_float(record["video"])
    return {"video": video, "captions": [record["caption"]], "is_image": False}


def packed_row(records: Sequence[Record]) -> Row:
    """Packs f still images into one row of f frames, each with its own caption.

    The paper packs independent images into the length of a video and masks everything that mixes
    over frames (arXiv 2210.02303, section 2.6).

    Raises:
      ValueError: a record is not a still image.
    """
    for record in records:
        if not record["is_image"] or record["video"].shape[0] != 1:
            raise ValueError(f"a packed row needs still images, got {record['video'].shape}")
    frames = np.concatenate([record["video"] for record in records])
    captions = [record["caption"] for record in records]
    return {"video": to_float(frames), "captions": captions, "is_image": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Which rows of a global batch a process owns and where their captions stand.

    Rows are cut, in order, into microbatches and each of these into row shards. A shard's captions
    stand together, in row order, in a number of slots that is the same for all shards, so that
    shapes are static; slots left over hold zeros and no frame reads them.

    Attributes:
      groups: Int[u s r], global rows by microbatch and shard, of the shards this process owns.
      shards: which of a microbatch's shards these are, ascending.
      captions: slots of a shard.
      frames: frames of a packed row; None if no row of the global batch is one.
    """

    groups: Int[np.ndarray, "u s r"]
    shards: tuple[int, ...]
    captions: int
    frames: int | None

    @classmethod
    def build(
        cls,
        *,
        image_rows: Sequence[bool],
        frames: int,
        microbatches: int,
        row_shards: int,
        shards: Sequence[int],
    ) -> "BatchLayout":
        """Lays out the batches whose row j packs `frames` images where `image_rows[j]` is True.

        Raises:
          ValueError: the rows cannot be cut into equal parts, or the process's shards are not some
            of these, in order.
        """
        shards = tuple(shards)
        if not shards or shards != tuple(sorted(set(shards) & set(range(row_shards)))):
            raise ValueError(f"shards: {shards} are not some of {row_shards}, in order")
        if len(image_rows) % (microbatches * row_shards):
            raise ValueError(
                f"batch_size is {len(image_rows)}, must be a multiple of microbatches x row_shards,"
                f" {microbatches} x {row_shards}"
            )
        rows = np.arange(len(image_rows)).reshape(microbatches, row_shards, -1)
        captions = np.where(image_rows, frames, 1)[rows].sum(axis=-1)
        return cls(
            groups=rows[:, list(shards)],
            shards=shards,
            captions=int(captions.max()),
            frames=frames if any(image_rows) else None,
        )


def collate(rows: Sequence[Row], *, layout: BatchLayout, caption_fn: CaptionFn) -> dict[str, Any]:
    """Stacks a process's rows, in the order of `layout.groups`, into the arrays of one batch.

    Args:
      rows: with two entries more, `row`, the row's number in the global batch, and `damaged`, notes
        on records that had to be replaced.
      layout: where rows and captions stand.
      caption_fn: captions to their arrays.

    Returns:
      The batch as `pipeline.Batches` describes it, and the notes of all rows under `damaged`.

    Raises:
      ValueError: the rows differ in shape.
    """
    shapes = {row["video"].shape for row in rows}
    lengths = {shape[0] for shape in shapes} | ({layout.frames} if layout.frames else set())
    if len(shapes) > 1 or len(lengths) > 1:
        packed = f"; packed rows have {layout.frames} frames" if layout.frames else ""
        raise ValueError(f"rows of one batch differ in shape: {sorted(shapes)}{packed}")
    (frames,) = lengths
    u, s, r = layout.groups.shape
    captions, indices, ids = [], [], []
    for g in range(u * s):
        # Captions of other processes' shards come before, between or after: indices are global.
        first = layout.shards[g % s] * layout.captions
        used = 0
        for row in rows[g * r : (g + 1) * r]:
            count = len(row["captions"])
            slots = np.arange(first + used, first + used + count)
            indices.append(np.broadcast_to(slots, (frames,)))
            ids.extend(row["row"] * frames + frame for frame in range(count))
            captions.extend(row["captions"])
            used += count
        ids.extend([-1] * (layout.captions - used))
    batch = {
        "video": np.stack([row["video"] for row in rows]),
        "row": np.array([row["row"] for row in rows], np.int32),
    }
    read = np.array(ids) >= 0
    for name, values in caption_fn(captions).items():
        batch[name] = np.zeros((len(ids), *values.shape[1:]), values.dtype)
        batch[name][read] = values
    if layout.frames:
        batch["is_image"] = np.array([row["is_image"] for row in rows])
        batch["caption_index"] = np.stack(indices).astype(np.int32)
        batch["caption_id"] = np.array(ids, np.int32)
    if u > 1:
        batch = {name: x.reshape(u, -1, *x.shape[1:]) for name, x in batch.items()}
    return batch | {"damaged": [note for row in rows for note in row["damaged"]]}
