"""The chunk files of a zarr array, looked at before they are read.

tensorstore reserves the memory of all that a `.zarray` claims before it opens a file, and takes a
gzip stream for whole as soon as it has given enough values, so that a file without its end passes.
"""

import itertools
import math
import os

import tensorstore
from etils import epath

# Where a chunk says how many bytes it unpacks to, as four bytes, the lowest first.
_SIZE_AT = {"gzip": (-4, os.SEEK_END), "blosc": (4, os.SEEK_SET)}
# These notice themselves that their end is missing; of others, such as bz2, that cannot be seen.
_COMPRESSORS = {*_SIZE_AT, "zstd", None}


def check_chunks(store: tensorstore.TensorStore, directory: epath.Path) -> None:
    """Compares what an array claims with its files in `directory`; reads a few bytes of each.

    Raises:
      ValueError: naming a chunk that is missing or cut short, or a compressor that hides it.
    """
    metadata = store.spec(retain_context=False).to_json()["metadata"]
    compressor = (metadata["compressor"] or {}).get("id")
    if compressor not in _COMPRESSORS:
        raise ValueError(f"compressor {compressor} is not supported, T5X writes gzip")
    there = {key.decode() for key in store.kvstore.list().result()} - {".zarray"}
    grid = [-(-n // chunk) for n, chunk in zip(metadata["shape"], metadata["chunks"])]
    if math.prod(grid) > len(there):
        raise ValueError(f"{len(there)} of its {math.prod(grid)} chunk files are there")
    numbers = itertools.product(*(range(count) for count in grid))
    separator = metadata["dimension_separator"]
    keys = [separator.join(map(str, chunk)) for chunk in numbers]
    for key in keys:
        if key not in there:
            raise ValueError(f"chunk {key} is missing")
    if compressor not in _SIZE_AT:
        return
    size = math.prod(metadata["chunks"]) * store.dtype.numpy_dtype.itemsize
    for key in keys:
        with (directory / key).open("rb") as file:
            try:
                file.seek(*_SIZE_AT[compressor])
                stated = file.read(4)
            except (OSError, ValueError):  # There is nothing before the end.
                stated = b""
        if stated != (size % 2**32).to_bytes(4, "little"):
            raise ValueError(f"chunk {key} is cut short or of another size than {size} bytes")
