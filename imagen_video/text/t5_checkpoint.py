"""An opened T5 v1.1 checkpoint of whatever format: unread tensors by T5X path."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from etils import epath

FLOAT_TYPES = ("float32", "bfloat16", "float16")

EMBEDDING = "token_embedder/embedding"
REL_EMBEDDING = "encoder/relpos_bias/rel_embedding"
FINAL_NORM = "encoder/encoder_norm/scale"
_LAYER_NAMES = (
    "pre_attention_layer_norm/scale",
    "attention/query/kernel",
    "attention/key/kernel",
    "attention/value/kernel",
    "attention/out/kernel",
    "pre_mlp_layer_norm/scale",
    "mlp/wi_0/kernel",
    "mlp/wi_1/kernel",
    "mlp/wo/kernel",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint, described but not read.

    Attributes:
      name: how errors call it; holds the name in the file.
      shape: in T5X orientation: (in, out) for kernels, (heads, buckets) for the bias.
      dtype: one of FLOAT_TYPES.
      read: returns it whole, in T5X orientation; ValueError naming it where the file is damaged.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def __post_init__(self):
        if self.dtype not in FLOAT_TYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype}, must be {', '.join(FLOAT_TYPES)}")
        if max(self.shape, default=0) >= 2**31:  # What devices count with.
            raise ValueError(f"{self.name}: shape {self.shape}, sizes must be below 2^31")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint: every tensor of its encoder, and what its files say about sizes.

    Attributes:
      tensors: by T5X path, such as 'encoder/layers_0/attention/query/kernel'; complete for the
        num_layers that its names tell.
      stated: T5Config fields that weights cannot tell, or tell again, from a file beside them.
    """

    tensors: dict[str, StoredTensor]
    stated: dict[str, int]


def expected_paths(num_layers: int) -> Iterator[str]:
    """Yields the T5X paths of an encoder with so many layers."""
    yield from (EMBEDDING, REL_EMBEDDING, FINAL_NORM)
    for i in range(num_layers):
        yield from (f"encoder/layers_{i}/{name}" for name in _LAYER_NAMES)


def complete_paths(found: Iterable[str], where: epath.Path, shown: Callable) -> list[str]:
    """Returns the T5X paths of an encoder as deep as the found names say.

    Args:
      found: T5X paths of a checkpoint's encoder, in any order.
      where: the checkpoint, for errors.
      shown: T5X path -> how errors call it.

    Raises:
      ValueError: naming a missing tensor, or one that no encoder has.
    """
    found = set(found)
    layers = [int(m[1]) for m in (re.match(r"encoder/layers_(\d+)/", n) for n in found) if m]
    paths = []
    # One by one: a name may claim more layers than there is memory for names.
    for path in expected_paths(max(layers, default=0) + 1):
        if path not in found:
            raise ValueError(f"{where}: missing tensor {shown(path)}")
        paths.append(path)
    for name in sorted(found.difference(paths)):
        raise ValueError(f"{where}: {name} is no tensor of a T5 v1.1 encoder")
    return paths


def refuse_pickle(file: epath.Path, *, only_if_pickled: bool = False) -> None:
    """Raises a ValueError that says why the file is not read; pickles can run any program."""
    with file.open("rb") as opened:
        head = opened.read(4)
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if pickled or head == b"PK\x03\x04" or not only_if_pickled:
        raise ValueError(f"{file}: pickle files are never read, convert it to safetensors first")


def one_line(error: Exception) -> str:
    """The message of an error without line breaks, shortened to 300 characters."""
    return " ".join(str(error).split())[:300]
