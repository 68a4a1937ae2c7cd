"""Captions' embeddings in a folder of ArrayRecord files, found again by caption.

    header.json                              which text model made them, of how many captions
    keys.npy                                 uint64, the key of every caption, ascending
    embeddings-00000-of-00012.array_record   a record a caption, in the order of the keys

A record is a safetensors buffer: `caption` uint8, its UTF-8; `tokens` int32 [n] and `text_emb`
bfloat16 [n d], of real tokens alone. Which file a caption is in, and where, follows from the set
of captions, so that runs over several processes, or killed and begun again, leave the same bytes.
"""

import concurrent.futures
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
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from grain.sources import ArrayRecordDataSource
from jaxtyping import Int32, Shaped, UInt64
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from imagen_video import records
from imagen_video.data.cache_header import HEADER_FILE, CacheHeader, check_same, read_header
from imagen_video.files import atomic_path, local_path

KEYS_FILE = "keys.npy"
_REMEDY = "run embed-text as before and it is made again"


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

    Keys that are damaged or gone are written anew: they follow from the captions.

    Raises:
      ValueError: the folder holds a cache of another text model or of other captions, or something
        else.
    """
    keys = np.array([caption_key(caption) for caption in ordered], np.uint64)
    if (root / HEADER_FILE).is_file():
        check_same(root, read_header(root), header)
        try:
            if np.array_equal(_read_keys(root, header), keys):
                return
        except ValueError:
            pass
        _write_keys(root, keys)
        return
    # What a kill may have left, for the header comes last.
    begun = {KEYS_FILE, f".{KEYS_FILE}.part", f".{HEADER_FILE}.part"}
    if root.is_dir() and {path.name for path in root.iterdir()} - begun:
        raise ValueError(f"{root}: holds something else already, name another folder")
    root.mkdir(parents=True, exist_ok=True)
    _write_keys(root, keys)
    with atomic_path(root / HEADER_FILE) as part:
        part.write_text(json.dumps(records.to_dict(header), indent=2) + "\n")


def _write_keys(root: pathlib.Path, keys: UInt64[np.ndarray, " captions"]) -> None:
    with atomic_path(root / KEYS_FILE) as part, open(part, "wb") as opened:
        np.save(opened, keys)


def _read_keys(root: pathlib.Path, header: CacheHeader) -> UInt64[np.ndarray, " captions"]:
    """Maps the keys into memory. Raises a ValueError where they are not such as were written."""
    file, shape = root / KEYS_FILE, (header.captions,)
    try:
        keys = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read ({reason}); {_REMEDY}") from error
    if not isinstance(keys, np.ndarray) or (keys.dtype, keys.shape) != (np.uint64, shape):
        raise ValueError(f"{file}: holds something else than {shape[0]} keys; {_REMEDY}")
    if (keys[1:] < keys[:-1]).any():
        raise ValueError(f"{file}: its keys are not in ascending order; {_REMEDY}")
    return keys


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


def is_whole(path: pathlib.Path, captions: int) -> bool:
    """Whether a file of a cache ends as it should, with so many records; reads its index alone.

    Raises:
      OSError: it is there but may not be read.
    """
    if not path.is_file():
        return False
    path.open("rb").close()
    reader = ArrayRecordReader(str(path))
    found = reader.num_records()  # none where the file is damaged, of which only `close` tells
    try:
        reader.close()
    except RuntimeError:
        return False
    return found == captions


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
        return _read_keys(self.root, self.header)

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
            if caption_key(entry.caption) != int(key):
                shard = self._shard(position)
                raise ValueError(f"{shard}: holds other captions; delete it, {_REMEDY}")
            position += 1
        raise ValueError(f"{self.root}: holds no embedding of the caption {caption!r}")

    def _record(self, position: int) -> CaptionEmbedding:
        try:
            arrays = dict(deserialize(self._source[position]))
            tokens = np.frombuffer(arrays["tokens"]["data"], np.int32)
            shape = tuple(arrays["text_emb"]["shape"])
            if shape != (len(tokens), self.header.width) or len(tokens) > self.header.num_tokens:
                raise ValueError(f"embeddings of shape {shape} for {len(tokens)} tokens")
            text_emb = np.frombuffer(arrays["text_emb"]["data"], ml_dtypes.bfloat16)
            return CaptionEmbedding(
                caption=arrays["caption"]["data"].decode("utf-8", "surrogatepass"),
                tokens=tokens,
                text_emb=text_emb.reshape(shape),
            )
        except (RuntimeError, SafetensorError, LookupError, ValueError) as error:
            reason = " ".join(str(error).split())
            shard = self._shard(position)
            raise ValueError(f"{shard}: cannot be read ({reason}); delete it, {_REMEDY}") from error

    def _shard(self, position: int) -> pathlib.Path:
        return self.root / self.header.shards[position // self.header.shard_captions]

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
      ValueError: naming the folder, which is no cache or unfinished, or a file that is damaged.
      OSError: naming a file that may not be read.
    """
    if not path:
        raise ValueError("text.cache: its folder has an empty name")
    root = local_path(path)
    cache = EmbeddingCache(root=root, header=read_header(root))
    _ = cache._keys  # Before the files, of which a damaged header may claim any number.
    shards = cache.header.shards
    missing = [name for name in shards if not (root / name).exists()]
    if missing:
        raise ValueError(
            f"{root}: unfinished, {len(missing)} of {len(shards)} files are missing; run"
            " embed-text as before and it goes on"
        )
    paths = [root / name for name in shards]
    sizes = map(cache.header.shard_size, range(len(shards)))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        for file, whole in zip(paths, threads.map(is_whole, paths, sizes)):
            if not whole:
                raise ValueError(f"{file}: damaged, or of another cache; {_REMEDY}")
    return cache


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
