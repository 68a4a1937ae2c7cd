"""The T5 checkpoints in tests/fixtures, and ways of changing and comparing copies of them."""

import json
import pathlib

import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from imagen_video.text.t5_weights import load_t5

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
T5X = FIXTURES / "t5_t5x"
HF = FIXTURES / "t5_hf"
QUERY = "target.encoder.layers_1.attention.query.kernel"
HF_QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"


def flat(encoder):
    return {
        k: np.asarray(v) for k, v in traverse_util.flatten_dict(encoder.params, sep="/").items()
    }


def assert_same_params(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def encoder_of_npz():
    stored = np.load(T5X / "params.npz")
    return {k: stored[k] for k in stored if not k.startswith("decoder/")}


def edit_index(directory, edit):
    index = serialization.msgpack_restore((directory / "checkpoint").read_bytes())
    edit(index["optimizer"]["target"])
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(index))


def edit_tensors(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors")


def one_line_error(path):
    with pytest.raises(ValueError) as caught:
        load_t5(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shard(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        weight_map[name] = f"model-0000{i % 3 + 1}-of-00003.safetensors"
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in tensors if weight_map[n] == file}, directory / file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map
