"""T5X checkpoints (github.com/google-research/t5x): a msgpack index and zarr arrays beside it.

The leaves of the index are arrays, or tensorstore descriptions of zarr directories. The decoder and
the optimiser's slots are never opened. T5X itself is not needed.
"""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization

from imagen_video.text.t5_checkpoint import (
    Checkpoint,
    StoredTensor,
    complete_paths,
    one_line,
    refuse_pickle,
)
from imagen_video.text.zarr_chunks import check_chunks


def open_t5x(directory: epath.Path) -> Checkpoint:
    """Lists the encoder tensors of a T5X checkpoint directory, local or gs://.

    Raises:
      ValueError: naming the index, or the tensor that is missing or described wrongly.
    """
    index_file = directory / "checkpoint"
    refuse_pickle(index_file, only_if_pickled=True)
    try:
        index = serialization.msgpack_restore(index_file.read_bytes())
        target = index.get("optimizer", index)["target"]
        leaves = {
            "/".join(path): leaf
            for part in ("token_embedder", "encoder")
            for path, leaf in _leaves((part,), target.get(part, {}))
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index_file}: not a T5X index ({one_line(error)})") from error
    paths = complete_paths(leaves, directory, lambda path: f"target/{path}")
    tensors = {path: _t5x_tensor(directory, path, leaves[path]) for path in paths}
    return Checkpoint(tensors=tensors, stated={})


def _leaves(path: tuple[str, ...], node: Any) -> Iterable[tuple[tuple[str, ...], Any]]:
    """Leaves of a T5X index: a description of a zarr array is a dict too, but is a leaf."""
    if isinstance(node, dict) and "kvstore" not in node:
        for name, child in node.items():
            yield from _leaves((*path, name), child)
    else:
        yield path, node


def _t5x_tensor(directory: epath.Path, path: str, leaf: Any) -> StoredTensor:
    name = f"{directory}: target/{path}"
    if isinstance(leaf, np.ndarray):
        return StoredTensor(name=name, shape=leaf.shape, dtype=leaf.dtype.name, read=lambda: leaf)
    if not isinstance(leaf, dict):
        raise ValueError(f"{name}: the index holds a {type(leaf).__name__}, not an array")
    try:
        # The index may name the bucket that it was written to: the arrays lie beside it all the
        # same. Through gs:// T5X also wrote lists as {"0": .., "1": ..}.
        spec = _lists(leaf)
        old_path = spec.pop("path", "")
        stored_path = spec["kvstore"].get("path", "") + old_path
        if spec["kvstore"]["driver"] not in ("file", "gcs", "gfile"):
            raise ValueError(f"kvstore driver {spec['kvstore']['driver']!r} is not supported")
        if spec["driver"] != "zarr":
            raise ValueError(f"driver {spec['driver']!r} is not supported")
        array = directory / stored_path.rstrip("/").split("/")[-1]
        spec["kvstore"] = _kvstore(array)
        spec["fill_missing_data_reads"] = False
        store = tensorstore.open(spec, open=True, read=True).result()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: cannot open its zarr array ({one_line(error)})") from error

    def read() -> np.ndarray:
        try:
            check_chunks(store, array)
            return store.read().result()
        except ValueError as error:
            raise ValueError(f"{name}: cannot read its zarr array ({one_line(error)})") from error

    return StoredTensor(name=name, shape=tuple(store.shape), dtype=store.dtype.name, read=read)


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(str(key).isdigit() for key in value):
        return [_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _lists(child) for key, child in value.items()}


def _kvstore(directory: epath.Path) -> dict[str, str]:
    text = str(directory)
    if text.startswith("gs://"):
        bucket, _, key = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": key + "/"}
    return {"driver": "file", "path": os.path.abspath(text) + "/"}
