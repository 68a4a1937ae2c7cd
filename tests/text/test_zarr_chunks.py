"""Chunk files of a T5X checkpoint that are missing, cut short or claimed beyond measure."""

import json
import shutil

import pytest
import tensorstore
from t5_files import (
    QUERY,
    assert_same_params,
    edit_index,
    encoder_of_npz,
    flat,
    one_line_error,
)

from imagen_video.text.t5_weights import load_t5


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
