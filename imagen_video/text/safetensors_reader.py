"""T5 encoders in safetensors files: Hugging Face's, and our own export.

Hugging Face stores `model.safetensors`, or shards and `model.safetensors.index.json`, with its own
names and linear weights as (out, in): both are translated. Our export has T5X paths for names.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from imagen_video.text.t5_checkpoint import (
    EMBEDDING,
    FINAL_NORM,
    REL_EMBEDDING,
    Checkpoint,
    StoredTensor,
    complete_paths,
    one_line,
    refuse_pickle,
)

SIZES_KEY = "t5_sizes"  # metadata of our own export: JSON of the config's sizes
_SAFETENSORS_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# T5X name inside encoder/layers_i: Hugging Face name inside encoder.block.i
_LAYER_NAMES = {
    "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
    "attention/query/kernel": "layer.0.SelfAttention.q.weight",
    "attention/key/kernel": "layer.0.SelfAttention.k.weight",
    "attention/value/kernel": "layer.0.SelfAttention.v.weight",
    "attention/out/kernel": "layer.0.SelfAttention.o.weight",
    "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
    "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
    "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
    "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
}


def open_safetensors(path: epath.Path) -> Checkpoint:
    """Lists the encoder tensors of a .safetensors file, or of the shards an .index.json names.

    Raises:
      ValueError: naming the file, or the tensor that is missing or not an encoder's.
    """
    if str(path).startswith("gs://"):
        raise ValueError(f"{path}: safetensors are read from a local disk, copy the files first")
    metadata = {}
    if path.suffix == ".json":
        shard_of = _shards_of(path)
    else:
        with _safe_open(path) as file:
            shard_of, metadata = dict.fromkeys(file.keys(), path.name), file.metadata() or {}
    if EMBEDDING in shard_of:
        layout = {t5x_path: (t5x_path, False) for t5x_path in complete_paths(shard_of, path, str)}
        stated = _json_object(metadata.get(SIZES_KEY, "{}"), path)
    else:
        layout = _hugging_face_layout(path, shard_of)
        stated = _stated_sizes(path.parent / "config.json")
    tensors = {
        t5x_path: _safetensor(path.parent / shard_of[name], name, transposed)
        for t5x_path, (name, transposed) in layout.items()
    }
    return Checkpoint(tensors=tensors, stated=stated)


def _hugging_face_layout(path: epath.Path, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Returns, by T5X path, the name in the file and whether the tensor is stored transposed."""
    names = set(names)
    known = {
        REL_EMBEDDING: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        FINAL_NORM: "encoder.final_layer_norm.weight",
        EMBEDDING: "shared.weight",
    }
    if "encoder.embed_tokens.weight" in names:  # the encoder's own name for the shared table
        known[EMBEDDING] = "encoder.embed_tokens.weight"
    blocks = {int(m[1]) for m in (re.match(r"encoder\.block\.(\d+)\.", n) for n in names) if m}
    # At least one of as many blocks as there are names is missing, whatever number the last has.
    for i in range(min(max(blocks, default=0), len(names)) + 1):
        for t5x_name, name in _LAYER_NAMES.items():
            known[f"encoder/layers_{i}/{t5x_name}"] = f"encoder.block.{i}.{name}"
    t5x_path_of = {name: t5x_path for t5x_path, name in known.items()}
    found = [t5x_path_of.get(n, n) for n in names if n.startswith(("encoder.", "shared."))]
    if known[EMBEDDING] != "shared.weight" and "shared.weight" in found:
        found.remove("shared.weight")
    complete = complete_paths(found, path, lambda t5x_path: f"{known[t5x_path]} ({t5x_path})")
    return {p: (known[p], p.endswith("kernel") or p == REL_EMBEDDING) for p in complete}


def _safetensor(file: epath.Path, name: str, transposed: bool) -> StoredTensor:
    full_name = f"{file}: {name}"
    with _safe_open(file) as opened:
        try:
            header = opened.get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{full_name}: missing, though the index names it") from error
        shape, dtype = tuple(header.get_shape()), header.get_dtype()

    def read() -> np.ndarray:
        # Opened anew for each tensor, so that no more of the mapped file stays in memory.
        with _safe_open(file) as opened:
            value = opened.get_tensor(name)
        return value.T if transposed else value

    return StoredTensor(
        name=full_name,
        shape=shape[::-1] if transposed else shape,
        dtype=_SAFETENSORS_TYPES.get(dtype, dtype),
        read=read,
    )


def _safe_open(file: epath.Path):
    if not file.is_file():
        raise ValueError(f"{file}: no such checkpoint file")
    file.open("rb").close()  # One that may not be read, safetensors calls missing.
    try:
        return safe_open(str(file), framework="numpy")
    except SafetensorError as error:
        refuse_pickle(file, only_if_pickled=True)
        raise ValueError(f"{file}: damaged safetensors file ({one_line(error)})") from error


def _stated_sizes(config_file: epath.Path) -> dict[str, int]:
    """Reads a Hugging Face config.json, where there is one, and refuses another architecture."""
    if not config_file.is_file():
        return {}
    config = _json_object(config_file.read_bytes(), config_file)
    for name, needed in (("feed_forward_proj", "gated-gelu"), ("layer_norm_epsilon", 1e-6)):
        if config.get(name, needed) != needed:
            raise ValueError(f"{config_file}: {name} is {config[name]!r}, must be {needed!r}")
    fields = {
        "num_layers": "num_layers",
        "num_heads": "num_heads",
        "d_kv": "head_dim",
        "relative_attention_max_distance": "relpos_max_distance",
    }
    return {field: config[name] for name, field in fields.items() if config.get(name) is not None}


def _shards_of(index_file: epath.Path) -> dict[str, str]:
    shard_of = _json_object(index_file.read_bytes(), index_file).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(v, str) for v in shard_of.values()):
        raise ValueError(f"{index_file}: has no weight_map of file names")
    return shard_of


def _json_object(text: str | bytes, where: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: not a JSON object ({one_line(error)})") from error
