"""Captions to a cache of their frozen embeddings, a file at a time; goes on where it stopped."""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from imagen_video.data.cache_header import FORMAT_VERSION, CacheHeader
from imagen_video.data.embedding_cache import (
    CaptionEmbedding,
    begin_cache,
    captions_digest,
    in_order,
    is_whole,
    write_shard,
)
from imagen_video.files import held
from imagen_video.sharding.processes import from_first
from imagen_video.text.text_model import TextModel
from imagen_video.text.tokenizer import PAD_ID, warn_of_truncation

SHORTEST = 16  # tokens; shorter captions are padded to it
IN_FLIGHT = 2  # batches: the device works on one while the one before is fetched


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingReport:
    """What a run did, its own process alone.

    Attributes:
      captions: embedded now.
      kept: found in files of an earlier run.
      tokens: real ones, embedded now.
      truncated: captions that were too long.
      tokens_lost: cut off from those.
      seconds: wall time, compilation included.
    """

    captions: int = 0
    kept: int = 0
    tokens: int = 0
    truncated: int = 0
    tokens_lost: int = 0
    seconds: float = 0.0


@runtime_checkable
class EmbeddingProgress(Protocol):
    """Told after every batch: captions that are done, those of earlier runs too; tokens made."""

    def __call__(self, *, done: int, total: int, tokens: int) -> None: ...


def embed_captions(
    captions: Iterable[str],
    text: TextModel,
    out: pathlib.Path,
    *,
    batch_size: int = 32,
    shard_captions: int = 2048,
    progress: EmbeddingProgress | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> EmbeddingReport:
    """Writes the embeddings of all captions, each once, to the cache `out`.

    Killed at any moment and begun again with the same arguments, it makes the files that are
    missing or cut short; the folder ends with the same bytes. Each process makes every
    `process_count`-th file with its own devices, in a folder that all of them see.

    Args:
      captions: any number of times each; read to the end before anything is written.
      text: what embeds them.
      out: the folder.
      batch_size: captions encoded at a time, at most those of a file.
      shard_captions: captions of a file: what a kill loses at most, and what is held in memory.
      progress: told after every batch.
      process_index: this process's number; by default as jax has it.
      process_count: likewise.

    Raises:
      ValueError: no captions, or `out` holds a cache of another text model or other captions, or
        another run is at work in it.
      OSError: `out` cannot be written.
    """
    for name, value in (("batch_size", batch_size), ("shard_captions", shard_captions)):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")
    ordered = in_order(captions)
    if not ordered:
        raise ValueError("captions: there are none")
    header = CacheHeader(
        format_version=FORMAT_VERSION,
        text_digest=text.digest,
        encoder=text.paths.encoder,
        tokenizer=text.paths.tokenizer,
        dtype=text.encoder.config.dtype,
        num_tokens=text.num_tokens,
        width=text.width,
        captions=len(ordered),
        captions_digest=captions_digest(ordered),
        shard_captions=shard_captions,
    )
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    with contextlib.ExitStack() as holding:

        def begin() -> None:
            holding.enter_context(held(out))
            begin_cache(out, header, ordered)

        from_first(begin)
        report = _embed_files(
            range(index, len(header.shards), count),
            ordered,
            text,
            out,
            header,
            # More rows than a file has captions would be padding alone.
            batch_size=min(batch_size, shard_captions, len(ordered)),
            progress=progress,
        )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("embedding cache finished")
    return report


def _embed_files(
    own: range,
    ordered: Sequence[str],
    text: TextModel,
    out: pathlib.Path,
    header: CacheHeader,
    *,
    batch_size: int,
    progress: EmbeddingProgress | None,
) -> EmbeddingReport:
    """Makes those of a process's own files that are missing, or that a crash has cut short."""
    size = header.shard_captions
    paths = {i: out / header.shards[i] for i in own}
    shards = {i: ordered[i * size : (i + 1) * size] for i in own}
    missing = [i for i in own if not is_whole(paths[i], len(shards[i]))]
    total = sum(map(len, shards.values()))
    kept = done = total - sum(len(shards[i]) for i in missing)
    tokens, lost, started = 0, [], time.perf_counter()
    for i in missing:
        text_emb: dict[int, np.ndarray] = {}
        encoded = [text.tokenizer.ids(caption, text.num_tokens) for caption in shards[i]]
        for rows in _embedded(text, [ids for ids, _ in encoded], batch_size):
            text_emb |= rows
            tokens += sum(map(len, rows.values()))
            done += len(rows)
            if progress is not None:
                progress(done=done, total=total, tokens=tokens)
        lost += [cut for _, cut in encoded if cut]
        write_shard(
            paths[i],
            (
                CaptionEmbedding(
                    caption=caption, tokens=np.array(ids, np.int32), text_emb=text_emb[row]
                )
                for row, (caption, (ids, _)) in enumerate(zip(shards[i], encoded))
            ),
        )
    warn_of_truncation(lost, of=total - kept, num_tokens=text.num_tokens)
    return EmbeddingReport(
        captions=total - kept,
        kept=kept,
        tokens=tokens,
        truncated=len(lost),
        tokens_lost=sum(lost),
        seconds=time.perf_counter() - started,
    )


def _embedded(
    text: TextModel, ids: Sequence[Sequence[int]], batch_size: int
) -> Iterator[dict[int, np.ndarray]]:
    """Yields bfloat16 embeddings [n d] of each caption's ids by its number, a batch at a time."""
    in_flight = collections.deque()
    for rows, tokens in _batches(ids, batch_size, text.num_tokens):
        # Rounded before it leaves the device, to half the bytes.
        in_flight.append((rows, text.encoder(tokens).astype(jnp.bfloat16)))
        if len(in_flight) >= IN_FLIGHT:
            yield _fetched(*in_flight.popleft(), ids)
    while in_flight:
        yield _fetched(*in_flight.popleft(), ids)


def _fetched(
    rows: list[int], embedded: jax.Array, ids: Sequence[Sequence[int]]
) -> dict[int, np.ndarray]:
    values = np.asarray(embedded)
    return {row: value[: len(ids[row])] for row, value in zip(rows, values)}


def _batches(
    ids: Sequence[Sequence[int]], batch_size: int, num_tokens: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Captions of similar length together, so that little is padding, in few shapes.

    Lengths are powers of two times SHORTEST, and at most num_tokens; every batch is full, with rows
    of padding where captions run out: the encoder is compiled once a length.
    """
    by_length = collections.defaultdict(list)
    for row, caption in enumerate(ids):
        length = SHORTEST
        while length < len(caption):
            length *= 2
        by_length[min(length, num_tokens)].append(row)
    for length, rows in sorted(by_length.items()):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            tokens = np.full((batch_size, length), PAD_ID, np.int32)
            for slot, row in enumerate(part):
                tokens[slot, : len(ids[row])] = ids[row]
            yield part, tokens
