"""Captions' embeddings in a folder of ArrayRecord files, found again by caption.

    header.json                              which text model made them, of how many captions
    keys.npy                                 uint64, the key of every caption, ascending
    embeddings-00000-of-00012.array_record   a record a caption, in the order of the keys

A record is a safetensors buffer: `caption` uint8, its UTF-8; `tokens` int32 [n] and `text_emb`
bfloat16 [n d], of real tokens alone. Which file a caption is in, and where, follows from the set
of captions, so that runs over several processes, or killed and begun again, leave the same bytes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from grain.sources import ArrayRecordDataSource
from jaxtyping import Int32, Shaped, UInt64
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from imagen_video import records
from imagen_video.files import atomic_path, local_path

FORMAT_VERSION = 1
HEADER_FILE, KEYS_FILE = "header.json", "keys.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """What a cache says of itself. Equal headers mean interchangeable caches.

    Attributes:
      format_version: of the files.
      text_digest: names tokenizer and encoder by their contents.
      encoder: where the encoder lay when it was run.
      tokenizer: likewise.
      dtype: that the encoder computed in.
      num_tokens: longest caption n in tokens; longer ones were cut to it.
      width: d of the embeddings.
      captions: how many.
      captions_digest: of all of them.
      shard_captions: captions of a file; the last holds what is left.
    """

    format_version: int
    text_digest: str
    encoder: str
    tokenizer: str
    dtype: str
    num_tokens: int
    width: int
    captions: int
    captions_digest: str
    shard_captions: int

    def __post_init__(self):
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"format_version: {self.format_version}, this library reads {FORMAT_VERSION}"
            )
        for name in ("num_tokens", "width", "captions", "shard_captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")

    @property
    def text_model(self) -> str:
        """What errors call the text model."""
        return f"{self.text_digest[:12]} (encoder {self.encoder}, tokenizer {self.tokenizer})"

    @property
    def shards(self) -> tuple[str, ...]:
        """File names, in order."""
        count = -(-self.captions // self.shard_captions)
        return tuple(f"embeddings-{i:05d}-of-{count:05d}.array_record" for i in range(count))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CaptionEmbedding:
    """One record: a caption, its n real tokens and their embeddings in bfloat16."""

    caption: str
    tokens: Int32[np.ndarray, " n"]
    text_emb: Shaped[np.ndarray, "n d"]


def caption_key(caption: str) -> int:
    """The caption's place in the order: 64 bits of the BLAKE2b hash of its UTF-8."""
    return int.from_bytes(hashlib.blake2b(_utf8(caption), digest_size=8).digest(), "big")


def in_order(captions: Iterable[str]) -> list[str]:
    """Returns every caption once, by key; the rare ones that share a key by their letters."""
    return sorted(set(captions), key=lambda caption: (caption_key(caption), caption))


def captions_digest(ordered: Iterable[str]) -> str:
    """Names a set of captions, given as `in_order` returns them."""
    digest = hashlib.sha256()
    for caption in ordered:
        digest.update(hashlib.blake2b(_utf8(caption), digest_size=16).digest())
    return digest.hexdigest()


def begin_cache(root: pathlib.Path, header: CacheHeader, ordered: Sequence[str]) -> None:
    """Makes the folder with header and keys, or finds it begun with the same ones.

    Raises:
      ValueError: the folder holds a cache of another text model or of other captions, or something
        else.
    """
    file = root / HEADER_FILE
    if file.is_file():
        _check_same(root, _read_header(root), header)
        return
    # What a kill may have left, for the header comes last.
    begun = {KEYS_FILE, f".{KEYS_FILE}.part", f".{HEADER_FILE}.part"}
    if root.is_dir() and {path.name for path in root.iterdir()} - begun:
        raise ValueError(f"{root}: holds something else already, name another folder")
    root.mkdir(parents=True, exist_ok=True)
    keys = np.array([caption_key(caption) for caption in ordered], np.uint64)
    with atomic_path(root / KEYS_FILE) as part, open(part, "wb") as opened:
        np.save(opened, keys)
    with atomic_path(file) as part:
        part.write_text(json.dumps(records.to_dict(header), indent=2) + "\n")


def _check_same(root: pathlib.Path, there: CacheHeader, here: CacheHeader) -> None:
    if there.text_digest != here.text_digest:
        raise ValueError(
            f"{root}: holds embeddings of text model {there.text_model}, not of {here.text_model}"
        )
    for field in dataclasses.fields(CacheHeader):
        a, b = getattr(there, field.name), getattr(here, field.name)
        if a != b:
            raise ValueError(f"{root}: was begun with {field.name} {a}, not {b}; name another one")


def write_shard(path: pathlib.Path, entries: Iterable[CaptionEmbedding]) -> None:
    """Writes one file of a cache, under its name only when whole.

    Raises:
      OSError: naming the file: the disk is full, or it cannot be written.
    """
    with atomic_path(path) as part, _named(path):
        # Groups of one: records are read one by one, in any order.
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for entry in entries:
            arrays = {
                "caption": np.frombuffer(_utf8(entry.caption), np.uint8),
                "tokens": entry.tokens,
                "text_emb": np.ascontiguousarray(entry.text_emb.astype(ml_dtypes.bfloat16)),
            }
            writer.write(save(arrays))
        writer.close()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingCache:
    """A whole cache. Files are opened where they are first read, so it can go to other processes.

    Attributes:
      root: the folder.
      header: what it says of itself.
    """

    root: pathlib.Path
    header: CacheHeader

    @property
    def digest(self) -> str:
        """Names the text model, as `TextModel.digest` does."""
        return self.header.text_digest

    @property
    def name(self) -> str:
        """What errors call the text model."""
        return self.header.text_model

    @property
    def width(self) -> int:
        """Width d of the embeddings."""
        return self.header.width

    @functools.cached_property
    def _keys(self) -> UInt64[np.ndarray, " captions"]:
        file = self.root / KEYS_FILE
        try:
            keys = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise ValueError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
        shape = (self.header.captions,)
        if not isinstance(keys, np.ndarray) or (keys.dtype, keys.shape) != (np.uint64, shape):
            raise ValueError(f"{file}: holds something else than {shape[0]} keys")
        return keys

    @functools.cached_property
    def _source(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource([str(self.root / name) for name in self.header.shards])

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "header": self.header}

    def read(self, caption: str) -> CaptionEmbedding:
        """Returns a caption's record.

        Raises:
          ValueError: the cache lacks the caption, or its record is damaged.
        """
        key = np.uint64(caption_key(caption))
        position = int(np.searchsorted(self._keys, key))
        while position < len(self._keys) and self._keys[position] == key:
            entry = self._record(position)
            if entry.caption == caption:
                return entry
            position += 1
        raise ValueError(f"{self.root}: holds no embedding of the caption {caption!r}")

    def _record(self, position: int) -> CaptionEmbedding:
        try:
            arrays = dict(deserialize(self._source[position]))
            shape = arrays["text_emb"]["shape"]
            return CaptionEmbedding(
                caption=arrays["caption"]["data"].decode("utf-8", "surrogatepass"),
                tokens=np.frombuffer(arrays["tokens"]["data"], np.int32),
                text_emb=np.frombuffer(arrays["text_emb"]["data"], ml_dtypes.bfloat16).reshape(
                    shape
                ),
            )
        except (RuntimeError, SafetensorError, LookupError, ValueError) as error:
            shard = self.header.shards[position // self.header.shard_captions]
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.root / shard}: cannot be read ({reason})") from error

    def __call__(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns `tokens` int32 [m n] and `text_emb` bfloat16 [m n d], zero at padding."""
        m, n, d = len(captions), self.header.num_tokens, self.header.width
        tokens = np.zeros((m, n), np.int32)
        text_emb = np.zeros((m, n, d), ml_dtypes.bfloat16)
        for i, caption in enumerate(captions):
            entry = self.read(caption)
            tokens[i, : len(entry.tokens)] = entry.tokens
            text_emb[i, : len(entry.tokens)] = entry.text_emb
        return {"tokens": tokens, "text_emb": text_emb}


def open_cache(path: str) -> EmbeddingCache:
    """Opens a whole cache.

    Raises:
      ValueError: naming the folder: it is no cache, or files of it are still to be made.
    """
    root = local_path(path)
    header = _read_header(root)
    missing = [name for name in header.shards if not (root / name).is_file()]
    if missing:
        raise ValueError(
            f"{root}: unfinished, {len(missing)} of {len(header.shards)} files are missing; run"
            " embed-text as before and it goes on"
        )
    cache = EmbeddingCache(root=root, header=header)
    _ = cache._keys  # Damage is told of before the first step.
    return cache


def _read_header(root: pathlib.Path) -> CacheHeader:
    file = root / HEADER_FILE
    if not file.is_file():
        raise ValueError(f"{root}: no embedding cache, it has no {HEADER_FILE}")
    try:
        return records.from_dict(CacheHeader, json.loads(file.read_text()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """ArrayRecord tells of a full disk by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error


def _utf8(caption: str) -> bytes:
    """Half a surrogate pair, a legal str, has bytes too."""
    return caption.encode("utf-8", "surrogatepass")
