"""Every checkpoint layout gives the same parameters, and every damage one line that names it."""

import json
import os
import pathlib
import pickle
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from imagen_video.text.t5_weights import load_t5, save_t5

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
T5X = FIXTURES / "t5_t5x"
HF = FIXTURES / "t5_hf"
QUERY = "target.encoder.layers_1.attention.query.kernel"
HF_QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.fixture
def t5x(tmp_path):
    return pathlib.Path(shutil.copytree(T5X / "checkpoint_0", tmp_path / "checkpoint_0"))


@pytest.fixture
def hf(tmp_path):
    shutil.copytree(HF, tmp_path / "hf")
    return tmp_path / "hf"


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


def test_t5x_values_and_sizes():
    encoder = load_t5(T5X / "checkpoint_0")
    assert_same_params(flat(encoder), encoder_of_npz())
    config = encoder.config
    assert (config.vocab_size, config.emb_dim, config.num_heads) == (64, 16, 2)
    assert (config.head_dim, config.mlp_dim, config.num_layers) == (12, 32, 2)
    assert (config.relpos_buckets, config.relpos_max_distance) == (32, 128)


@pytest.mark.parametrize("driver", ["gcs", "gfile"])
def test_index_written_to_a_bucket_reads_the_local_directory(t5x, driver):
    index = serialization.msgpack_restore((T5X / "index_gcs_driver.msgpack").read_bytes())

    def set_driver(node):
        for child in node.values():
            if "kvstore" in child:
                child["kvstore"] = child["kvstore"] | {"driver": driver}
            else:
                set_driver(child)

    set_driver(index["optimizer"]["target"])
    (t5x / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    local = load_t5(T5X / "checkpoint_0")
    bucket = load_t5(t5x)
    assert_same_params(flat(bucket), flat(local))
    assert bucket.digest == local.digest


def test_path_from_the_working_directory(t5x, monkeypatch):
    monkeypatch.chdir(t5x.parent)
    assert_same_params(flat(load_t5("checkpoint_0")), encoder_of_npz())


def test_arrays_inside_the_index(t5x, monkeypatch):
    # flax cuts arrays above a limit into chunks: lower it so that some of these are.
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    arrays = traverse_util.unflatten_dict(encoder_of_npz(), sep="/")

    def inline(target):
        target.clear()
        target.update(arrays)

    edit_index(t5x, inline)
    assert b"__msgpack_chunked_array__" in (t5x / "checkpoint").read_bytes()
    for directory in list(t5x.iterdir()):
        if directory.is_dir():
            shutil.rmtree(directory)
    assert_same_params(flat(load_t5(t5x)), encoder_of_npz())


def test_zarr_in_several_chunks(t5x):
    value = encoder_of_npz()["encoder/layers_1/attention/query/kernel"]
    metadata = {"shape": [16, 24], "chunks": [5, 7], "compressor": {"id": "gzip", "level": 1}}
    shutil.rmtree(t5x / QUERY)
    store = tensorstore.open(
        {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "file", "path": f"{t5x / QUERY}/"},
            "metadata": metadata,
        },
        create=True,
    ).result()
    store.write(value).result()

    def chunked(target):
        kernel = target["encoder"]["layers_1"]["attention"]["query"]["kernel"]
        kernel["metadata"] = kernel["metadata"] | {"chunks": [5, 7]}

    edit_index(t5x, chunked)
    assert_same_params(flat(load_t5(t5x)), encoder_of_npz())


def test_hugging_face_orientation():
    stored = load_file(HF / "model.safetensors")
    params = flat(load_t5(HF))
    np.testing.assert_array_equal(
        params["encoder/layers_1/attention/query/kernel"], stored[HF_QUERY].T
    )
    np.testing.assert_array_equal(params["token_embedder/embedding"], stored["shared.weight"])
    assert sum(v.size for v in params.values()) == sum(v.size for v in stored.values())
    assert_same_params(params, flat(load_t5(HF / "model.safetensors")))


@pytest.mark.parametrize("keep_shared", [True, False])
def test_either_name_of_the_embedding_table(hf, keep_shared):
    def rename(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
        if not keep_shared:
            del tensors["shared.weight"]

    edit_tensors(hf, rename)
    assert_same_params(flat(load_t5(hf)), flat(load_t5(HF)))


def test_decoder_tensors_are_skipped(hf):
    def add_decoder(tensors):
        tensors["decoder.block.0.layer.0.layer_norm.weight"] = np.ones(3, np.int64)
        tensors["lm_head.weight"] = np.ones((64, 16), np.float32)

    edit_tensors(hf, add_decoder)
    assert_same_params(flat(load_t5(hf)), flat(load_t5(HF)))


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


def test_hugging_face_shards(hf):
    shard(hf)
    assert_same_params(flat(load_t5(hf)), flat(load_t5(HF)))


def test_missing_shard_is_named(hf):
    file = hf / shard(hf)[HF_QUERY]
    file.unlink()
    assert str(file) in one_line_error(hf)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_checkpoints(hf, dtype):
    edit_tensors(hf, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    halved, full = flat(load_t5(hf)), flat(load_t5(HF))
    for path in full:
        assert halved[path].dtype == np.float32
        np.testing.assert_array_equal(halved[path], full[path].astype(dtype).astype(np.float32))


def test_placed_one_by_one_in_the_held_dtype():
    seen = []

    def place(path, value):
        seen.append(path)
        assert isinstance(value, np.ndarray) and value.dtype == ml_dtypes.bfloat16
        assert value.flags.c_contiguous
        return jax.device_put(value)

    encoder = load_t5(HF, param_dtype="bfloat16", place=place)
    assert sorted(seen) == sorted(flat(encoder))
    assert encoder.digest == load_t5(HF).digest
    assert encoder.digest != load_t5(T5X / "checkpoint_0").digest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_and_back(tmp_path, dtype):
    encoder = load_t5(T5X / "checkpoint_0")
    save_t5(tmp_path / "encoder.safetensors", encoder, dtype=dtype)
    back = load_t5(tmp_path / "encoder.safetensors")
    assert back.config == encoder.config
    assert back.digest == encoder.digest
    assert sorted(f.name for f in tmp_path.iterdir()) == ["encoder.safetensors"]
    for path, value in flat(encoder).items():
        rounded = value.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else value
        np.testing.assert_array_equal(flat(back)[path], rounded.astype(np.float32))


# Damage: one line each, naming the tensor.


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
    file = hf / "model.safetensors"
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("may read anything")
    with pytest.raises(PermissionError, match=file.name):
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


def write_zarr(directory, value, **metadata):
    """In the place of an array of a T5X checkpoint, one compressed or cut up otherwise."""
    shutil.rmtree(directory)
    spec = {"driver": "zarr", "dtype": "float32"}
    spec["kvstore"] = {"driver": "file", "path": f"{directory}/"}
    metadata = {"shape": list(value.shape), "chunks": list(value.shape)} | metadata
    tensorstore.open(spec | {"metadata": metadata}, create=True).result().write(value).result()


def without_metadata(target):
    """The index then says nothing of how the array is stored."""
    del target["encoder"]["layers_1"]["attention"]["query"]["kernel"]["metadata"]


@pytest.mark.parametrize(
    "compressor", [None, {"id": "gzip"}, {"id": "blosc"}, {"id": "zstd"}], ids=str
)
def test_t5x_chunk_without_its_end(t5x, compressor):
    """However little is missing: gzip has all values before its last bytes, its checksum."""
    value = encoder_of_npz()["encoder/layers_1/attention/query/kernel"]
    write_zarr(t5x / QUERY, value, compressor=compressor, chunks=[8, 24])
    edit_index(t5x, without_metadata)
    assert_same_params(flat(load_t5(t5x)), encoder_of_npz())
    chunk = t5x / QUERY / "1.0"
    whole = chunk.read_bytes()
    for missing in (*range(1, 20), len(whole) - 2, len(whole)):
        chunk.write_bytes(whole[:-missing])
        assert "target/encoder/layers_1/attention/query/kernel: " in one_line_error(t5x), missing


def test_t5x_compressor_that_would_hide_a_missing_end(t5x):
    value = encoder_of_npz()["encoder/layers_1/attention/query/kernel"]
    write_zarr(t5x / QUERY, value, compressor={"id": "bz2", "level": 1})
    edit_index(t5x, without_metadata)
    message = one_line_error(t5x)
    assert "layers_1/attention/query/kernel: " in message and "bz2 is not supported" in message


@pytest.mark.parametrize(
    ("rows", "chunk", "message"),
    [
        (10**11, 64, "shape (100000000000, 16), sizes must be below 2^31"),
        (10**11, 10**11, "shape (100000000000, 16), sizes must be below 2^31"),
        (10**9, 64, "1 of its 15625000 chunk files are there"),
        (10**9, 10**9, "chunk 0.0 is cut short or of another size than 64000000000 bytes"),
        (2**70, 64, "cannot open its zarr array"),
    ],
)
def test_t5x_array_that_claims_more_than_its_files_hold(t5x, rows, chunk, message):
    """Without the memory for it, which tensorstore asks for first."""
    file = t5x / "target.token_embedder.embedding" / ".zarray"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps(metadata | {"shape": [rows, 16], "chunks": [chunk, 16]}))
    edit_index(t5x, lambda target: target["token_embedder"]["embedding"].pop("metadata"))
    error = one_line_error(t5x)
    assert "target/token_embedder/embedding: " in error and message in error


def test_t5x_array_of_another_driver(t5x):
    edit_index(t5x, lambda target: target["token_embedder"]["embedding"].update(driver="n5"))
    error = one_line_error(t5x)
    assert "target/token_embedder/embedding: " in error and "'n5' is not supported" in error


def test_a_layer_of_a_monstrous_number(t5x, hf):
    def add_layer(target):
        target["encoder"]["layers_99999999999"] = target["encoder"]["layers_0"]

    edit_index(t5x, add_layer)
    assert "missing tensor target/encoder/layers_2/" in one_line_error(t5x)
    name = HF_QUERY.replace("block.1", "block.99999999999")
    edit_tensors(hf, lambda tensors: tensors.update({name: tensors[HF_QUERY].copy()}))
    assert f"{name} is no tensor" in one_line_error(hf)
