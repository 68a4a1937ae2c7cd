"""Every damage of a T5 checkpoint is one line that names it."""

import json
import pathlib
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest
from permissions import unprivileged
from t5_files import (
    HF_QUERY,
    QUERY,
    edit_index,
    edit_tensors,
    encoder_of_npz,
    one_line_error,
    shard,
)

from imagen_video.text.t5_weights import load_t5


def test_missing_shard_is_named(hf):
    file = hf / shard(hf)[HF_QUERY]
    file.unlink()
    assert str(file) in one_line_error(hf)


def test_t5x_truncated_chunk(t5x):
    chunk = t5x / QUERY / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:400])
    assert "encoder/layers_1/attention/query/kernel" in one_line_error(t5x)


def test_t5x_missing_chunk_is_not_read_as_zeros(t5x):
    (t5x / QUERY / "0.0").unlink()
    assert "encoder/layers_1/attention/query/kernel" in one_line_error(t5x)


def test_t5x_missing_array(t5x):
    shutil.rmtree(t5x / QUERY)
    assert "encoder/layers_1/attention/query/kernel" in one_line_error(t5x)


def test_t5x_tensor_missing_from_the_index(t5x):
    edit_index(t5x, lambda target: target["encoder"]["layers_0"]["mlp"].pop("wo"))
    message = one_line_error(t5x)
    assert "missing" in message and "encoder/layers_0/mlp/wo/kernel" in message


def test_t5x_missing_layer(t5x):
    edit_index(t5x, lambda target: target["encoder"].pop("layers_0"))
    assert "encoder/layers_0/pre_attention_layer_norm/scale" in one_line_error(t5x)


def test_t5x_array_of_another_shape_than_the_index(t5x):
    shutil.rmtree(t5x / QUERY)
    shutil.copytree(t5x / "target.encoder.layers_1.mlp.wo.kernel", t5x / QUERY)
    assert "encoder/layers_1/attention/query/kernel" in one_line_error(t5x)


@pytest.mark.parametrize("layer", [0, 1])
def test_t5x_wrong_shape_names_the_odd_one_out(t5x, layer):
    def transpose(target):
        target["encoder"][f"layers_{layer}"]["attention"]["query"]["kernel"] = np.zeros(
            (24, 16), np.float32
        )

    edit_index(t5x, transpose)
    message = one_line_error(t5x)
    assert f"encoder/layers_{layer}/attention/query/kernel" in message
    assert "(24, 16)" in message and "(16, 24)" in message


@pytest.mark.parametrize("value", [np.zeros((16, 24)), np.zeros((16, 24), np.int32), b"abc", 3])
def test_t5x_wrong_dtype(t5x, value):
    def replace(target):
        target["encoder"]["layers_1"]["attention"]["query"]["kernel"] = value

    edit_index(t5x, replace)
    assert "encoder/layers_1/attention/query/kernel" in one_line_error(t5x)


def test_t5x_damaged_index(t5x):
    index = t5x / "checkpoint"
    index.write_bytes(index.read_bytes()[:1000])
    assert str(index) in one_line_error(t5x)


def test_hf_missing_tensor(hf):
    edit_tensors(hf, lambda t: t.pop(HF_QUERY))
    message = one_line_error(hf)
    assert HF_QUERY in message and "encoder/layers_1/attention/query/kernel" in message


def test_hf_wrong_shape(hf):
    edit_tensors(hf, lambda t: t.update({HF_QUERY: np.zeros((23, 16), np.float32)}))
    assert HF_QUERY in one_line_error(hf)


def test_hf_wrong_rank(hf):
    edit_tensors(hf, lambda t: t.update({HF_QUERY: np.zeros((24, 16, 1), np.float32)}))
    assert HF_QUERY in one_line_error(hf)


def test_hf_wrong_dtype(hf):
    edit_tensors(hf, lambda t: t.update({HF_QUERY: np.zeros((24, 16))}))
    assert HF_QUERY in one_line_error(hf)


def test_hf_foreign_encoder_tensor(hf):
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    edit_tensors(hf, lambda t: t.update({name: np.zeros((32, 2), np.float32)}))
    assert name in one_line_error(hf)


@pytest.mark.parametrize(
    "field, value", [("num_layers", 3), ("num_heads", 4), ("feed_forward_proj", "gated-silu")]
)
def test_hf_config_that_disagrees(hf, field, value):
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {field: value}))
    assert field in one_line_error(hf)


def test_hf_truncated_file(hf):
    file = hf / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert str(file) in one_line_error(hf)


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint", "pytorch_model.bin"])
def test_pickles_are_refused_unread(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "exploded",))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for path in (tmp_path, tmp_path / name):
        message = one_line_error(path)
        assert name in message and "pickle" in message
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_may_not_be_read_is_not_called_missing(hf):
    load_t5(hf)  # all modules that it needs are there
    file = hf / "model.safetensors"
    file.chmod(0)
    with unprivileged(hf), pytest.raises(PermissionError, match=file.name):
        load_t5(hf)


def test_a_file_of_another_kind_is_not_called_a_pickle(tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle")
    message = one_line_error(tmp_path / "captions.txt")
    assert "captions.txt: neither a T5X or Hugging Face folder nor" in message
    (tmp_path / "renamed.txt").write_bytes(pickle.dumps([1]))
    assert "renamed.txt: pickle files are never read" in one_line_error(tmp_path / "renamed.txt")


def test_paths_that_hold_no_checkpoint(tmp_path):
    assert str(tmp_path) in one_line_error(tmp_path)
    assert "nothing" in one_line_error(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"weight_map": {"shared.weight": null}}', "no weight_map of file names"),
        (b"[" * 100_000, "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
    ],
)
def test_hf_damaged_index(hf, content, message):
    (hf / "model.safetensors.index.json").write_bytes(content)
    error = one_line_error(hf)
    assert "model.safetensors.index.json: " in error and message in error


@pytest.mark.parametrize("value", ["far", 128.5, [128]])
def test_hf_stated_size_that_is_no_integer(hf, value):
    config = json.loads((hf / "config.json").read_text())
    config["relative_attention_max_distance"] = value
    (hf / "config.json").write_text(json.dumps(config))
    assert f"relpos_max_distance is stated as {value!r}" in one_line_error(hf)


def test_hf_tensor_that_holds_nothing(hf):
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    edit_tensors(hf, lambda tensors: tensors.update({bias: np.zeros((32, 0), np.float32)}))
    assert f"{bias}: shape (0, 32) holds nothing" in one_line_error(hf)


def test_t5x_array_at_a_path_that_is_no_text(t5x):
    def edit(target):
        target["token_embedder"]["embedding"]["kvstore"] = {"driver": "file", "path": 5}

    edit_index(t5x, edit)
    assert "target/token_embedder/embedding: cannot open" in one_line_error(t5x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_values_that_are_not_finite(hf, t5x, dtype, value):
    def spoil(tensors):
        tensors[HF_QUERY] = tensors[HF_QUERY].astype(dtype)
        tensors[HF_QUERY][3, 5] = value

    edit_tensors(hf, spoil)
    assert f"{HF_QUERY}: holds values that are NaN or infinite" in one_line_error(hf)
    kernel = encoder_of_npz()["encoder/layers_1/attention/query/kernel"].astype(dtype)
    kernel[5, 3] = value

    def inline(target):
        target["encoder"]["layers_1"]["attention"]["query"]["kernel"] = kernel

    edit_index(t5x, inline)
    message = one_line_error(t5x)
    assert (
        "encoder/layers_1/attention/query/kernel: holds values that are NaN or infinite" in message
    )


def test_a_value_too_large_for_the_held_dtype(hf):
    edit_tensors(hf, lambda tensors: tensors[HF_QUERY].__setitem__((3, 5), 3.4e38))
    load_t5(hf)
    with pytest.raises(ValueError, match=f"{HF_QUERY}: .* infinite in bfloat16"):
        load_t5(hf, param_dtype="bfloat16")


def test_a_layer_of_a_monstrous_number(t5x, hf):
    def add_layer(target):
        target["encoder"]["layers_99999999999"] = target["encoder"]["layers_0"]

    edit_index(t5x, add_layer)
    assert "missing tensor target/encoder/layers_2/" in one_line_error(t5x)
    name = HF_QUERY.replace("block.1", "block.99999999999")
    edit_tensors(hf, lambda tensors: tensors.update({name: tensors[HF_QUERY].copy()}))
    assert f"{name} is no tensor" in one_line_error(hf)
