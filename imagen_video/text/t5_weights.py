"""Loads a T5 v1.1 encoder from public checkpoints, whose sizes it reads from the tensors."""

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from jax.sharding import NamedSharding
from safetensors.numpy import save_file

from imagen_video.files import atomic_path
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout
from imagen_video.text.frozen_t5 import (
    FrozenT5,
    combined_digest,
    make_frozen_t5,
    tensor_digest,
)
from imagen_video.text.safetensors_reader import SIZES_KEY, open_safetensors
from imagen_video.text.t5_checkpoint import (
    EMBEDDING,
    REL_EMBEDDING,
    Checkpoint,
    StoredTensor,
    refuse_pickle,
)
from imagen_video.text.t5_encoder import T5Config, param_shapes
from imagen_video.text.t5x_reader import open_t5x

# float16 rounds otherwise than bfloat16: an encoder held in it would lose its digest.
HELD_TYPES = ("float32", "bfloat16")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Which size each axis of a tensor tells, by the end of its path.
_AXES = {
    "norm/scale": ("emb_dim",),
    "query/kernel": ("emb_dim", "joined"),
    "key/kernel": ("emb_dim", "joined"),
    "value/kernel": ("emb_dim", "joined"),
    "out/kernel": ("joined", "emb_dim"),
    "wi_0/kernel": ("emb_dim", "mlp_dim"),
    "wi_1/kernel": ("emb_dim", "mlp_dim"),
    "wo/kernel": ("mlp_dim", "emb_dim"),
    REL_EMBEDDING: ("num_heads", "relpos_buckets"),
    EMBEDDING: ("vocab_size", "emb_dim"),
}
# What the encoder's modules call these axes.
_LOGICAL = {
    "emb_dim": axes.EMBED,
    "joined": axes.HEADS,
    "num_heads": axes.HEADS,
    "mlp_dim": axes.MLP,
    "relpos_buckets": axes.BUCKETS,
    "vocab_size": axes.VOCAB,
}

Place = Callable[[str, np.ndarray], Any]


def on_one_device(path: str, value: np.ndarray) -> jax.Array:
    """Places a tensor whole."""
    del path
    return jnp.asarray(value)


def shape_alone(path: str, value: np.ndarray) -> jax.ShapeDtypeStruct:
    """Keeps nothing of a tensor but its shape: for an encoder of which only the digest matters."""
    del path
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def in_parts(layout: Layout) -> Place:
    """Returns what places each tensor so that a device, and a process, holds its part alone."""

    def place(path: str, value: np.ndarray) -> jax.Array:
        names = [_LOGICAL[size] for size in _size_names(path)]
        sharding = NamedSharding(layout.mesh, layout.param_spec(names, value.shape))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return place


def _size_names(path: str) -> tuple[str, ...]:
    return next(names for ending, names in _AXES.items() if path.endswith(ending))


def load_t5(
    path: epath.PathLike,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    place: Place = on_one_device,
    layout: Layout | None = None,
) -> FrozenT5:
    """Loads an encoder from T5X, Hugging Face safetensors or `save_t5`, with sizes found there.

    Tensors are read one at a time, cast, and placed before the next is read.

    Args:
      path: what `open_checkpoint` takes.
      dtype: compute dtype of the encoder, 'float32' or 'bfloat16'.
      param_dtype: the dtype parameters are held in, 'float32' or 'bfloat16'.
      place: puts one host array on its devices, given its T5X path.
      layout: spreads parameters over devices instead; None for what `place` does.

    Raises:
      ValueError: one line naming the file and the tensor that is missing, damaged, not finite, of
        a wrong shape or of a dtype that is no float of up to 32 bits; or a pickle file.
    """
    if param_dtype not in HELD_TYPES:
        raise ValueError(f"param_dtype: {param_dtype!r}, must be one of {', '.join(HELD_TYPES)}")
    checkpoint = open_checkpoint(path)
    config = infer_config(checkpoint.tensors, checkpoint.stated, dtype=dtype, where=str(path))
    place = place if layout is None else in_parts(layout)
    params, digests = {}, {}
    for t5x_path, tensor in checkpoint.tensors.items():
        value = tensor.read()
        digests[t5x_path] = tensor_digest(value)
        value = np.ascontiguousarray(value, jnp.dtype(param_dtype))
        if not np.isfinite(value).all():  # Every embedding would be NaN.
            raise ValueError(
                f"{tensor.name}: holds values that are NaN or infinite in {param_dtype}"
            )
        params[t5x_path] = place(t5x_path, value)
    params = traverse_util.unflatten_dict(params, sep="/")
    digest = combined_digest(digests)
    return make_frozen_t5(config, params, values_digest=digest, layout=layout)


def open_checkpoint(path: epath.PathLike) -> Checkpoint:
    """Lists a checkpoint's encoder tensors without reading their values.

    Args:
      path: a T5X directory (local or gs://), a Hugging Face directory, or a .safetensors file.

    Raises:
      ValueError: one line that names the path and, where there is one, the tensor.
    """
    path = epath.Path(path)
    if path.is_dir():
        if (path / "checkpoint").is_file():
            return open_t5x(path)
        for name in ("model.safetensors.index.json", "model.safetensors"):
            if (path / name).is_file():
                return open_safetensors(path / name)
        pickles = [file for file in path.iterdir() if file.suffix in _PICKLE_SUFFIXES]
        if pickles:
            refuse_pickle(pickles[0])
        raise ValueError(f"{path}: holds neither a T5X `checkpoint` nor `model.safetensors`")
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    if path.name.endswith((".safetensors", ".safetensors.index.json")):
        return open_safetensors(path)
    refuse_pickle(path, only_if_pickled=path.suffix not in _PICKLE_SUFFIXES)
    raise ValueError(f"{path}: neither a T5X or Hugging Face folder nor a .safetensors file")


def infer_config(
    tensors: Mapping[str, StoredTensor], stated: Mapping[str, int], *, dtype: str, where: str
) -> T5Config:
    """Finds the sizes that the tensors agree on.

    Most tensors tell a size each; the majority decides, so that an error names the odd one out.

    Args:
      tensors: all of an encoder, by T5X path.
      stated: T5Config fields that a file beside the weights states; they must agree.
      dtype: compute dtype of the config.
      where: names the checkpoint in errors.

    Raises:
      ValueError: naming the tensor that disagrees, or the stated field.
    """
    votes = collections.defaultdict(collections.Counter)
    for path, tensor in tensors.items():
        names = _size_names(path)
        if len(names) != len(tensor.shape):
            raise ValueError(f"{tensor.name}: shape {tensor.shape}, must be {names}")
        if 0 in tensor.shape:
            raise ValueError(f"{tensor.name}: shape {tensor.shape} holds nothing")
        for axis, size in zip(names, tensor.shape, strict=True):
            votes[axis][size] += 1
    sizes = {axis: counter.most_common(1)[0][0] for axis, counter in votes.items()}
    joined, num_heads = sizes.pop("joined"), sizes["num_heads"]
    if joined % num_heads:
        bias = tensors[REL_EMBEDDING]
        raise ValueError(
            f"{bias.name}: shape {bias.shape}, its {num_heads} heads do not divide attention "
            f"width {joined}"
        )
    sizes["head_dim"] = joined // num_heads
    sizes["num_layers"] = len([path for path in tensors if path.endswith("wo/kernel")])
    for field, value in stated.items():
        if type(value) is not int:
            raise ValueError(f"{where}: {field} is stated as {value!r}, must be an integer")
        if field in sizes and sizes[field] != value:
            raise ValueError(
                f"{where}: {field} is {sizes[field]} in the tensors, stated as {value}"
            )
    if "relpos_max_distance" in stated:
        sizes["relpos_max_distance"] = stated["relpos_max_distance"]
    try:
        config = T5Config(**sizes, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    for path, shape in param_shapes(config).items():
        if tensors[path].shape != shape:
            raise ValueError(
                f"{tensors[path].name}: shape {tensors[path].shape}, expected {shape}, inputs first"
            )
    return config


def save_t5(path: epath.PathLike, encoder: FrozenT5, *, dtype: str = "bfloat16") -> None:
    """Writes an encoder as one safetensors file that `load_t5` reads; replaces the file whole.

    bfloat16 keeps the encoder's digest. The sizes are in the metadata under "t5_sizes", as JSON.

    Raises:
      ValueError: dtype is neither 'float32' nor 'bfloat16'.
    """
    if dtype not in HELD_TYPES:
        raise ValueError(f"dtype: {dtype!r}, must be one of {', '.join(HELD_TYPES)}")
    flat: dict[str, Any] = traverse_util.flatten_dict(encoder.params, sep="/")
    tensors = {name: np.asarray(value).astype(jnp.dtype(dtype)) for name, value in flat.items()}
    sizes = {k: v for k, v in dataclasses.asdict(encoder.config).items() if k != "dtype"}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={SIZES_KEY: json.dumps(sizes)})
