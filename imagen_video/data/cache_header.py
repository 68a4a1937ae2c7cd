"""What a cache of embeddings says of itself: which text model made it, of how many captions."""

import dataclasses
import functools
import json
import pathlib

from imagen_video import records

FORMAT_VERSION = 1
HEADER_FILE = "header.json"


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

    @functools.cached_property
    def shards(self) -> tuple[str, ...]:
        """File names, in order."""
        count = -(-self.captions // self.shard_captions)
        return tuple(f"embeddings-{i:05d}-of-{count:05d}.array_record" for i in range(count))

    def shard_size(self, i: int) -> int:
        """Captions of file `i`."""
        return min(self.shard_captions, self.captions - i * self.shard_captions)


def read_header(root: pathlib.Path) -> CacheHeader:
    """Reads the header of the cache in a folder.

    Raises:
      ValueError: naming the folder, which is no cache, or the file and what is wrong in it.
    """
    file = root / HEADER_FILE
    if not file.is_file():
        raise ValueError(f"{root}: no embedding cache, it has no {HEADER_FILE}")
    try:
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged, it is not JSON ({error})") from error
    try:
        return records.from_dict(CacheHeader, values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def check_same(root: pathlib.Path, there: CacheHeader, here: CacheHeader) -> None:
    """Raises a ValueError naming what differs, where a folder was begun with another header."""
    if there.text_digest != here.text_digest:
        raise ValueError(
            f"{root}: holds embeddings of text model {there.text_model}, not of {here.text_model}"
        )
    for field in dataclasses.fields(CacheHeader):
        a, b = getattr(there, field.name), getattr(here, field.name)
        if a != b:
            raise ValueError(f"{root}: was begun with {field.name} {a}, not {b}; name another one")
