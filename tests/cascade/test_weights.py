"""A weights file alone is enough to sample, and says what is wrong with it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from memory_bucket import buckets
from micro_cascade import BASE, SSR1, STAGES, drawn_params, text_model, write_weights
from safetensors import safe_open
from safetensors.numpy import save_file

from imagen_video.cascade import stage as stage_module
from imagen_video.cascade.weights import (
    METADATA_KEY,
    check_params,
    load_stage,
    make_stage_model,
    save_stage,
)
from imagen_video.loading import load_cascade, load_stage_weights

DIGEST = "0123abcd"


def save(path, *, stage=BASE, params=None, dtype="float32"):
    params = drawn_params(stage) if params is None else params
    save_stage(str(path), stage, params, text_digest=DIGEST, dtype=dtype)
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_gives_back_stage_and_parameters(tmp_path, dtype):
    model = load_stage(save(tmp_path / "base.safetensors", dtype=dtype))
    assert model.stage == BASE and model.text_digest == DIGEST
    rounded = np.float32 if dtype == "float32" else getattr(ml_dtypes, dtype, np.float16)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(rounded), strict=False),
        model.params,
        drawn_params(BASE),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}


def test_a_file_in_a_bucket_is_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    on_disk = load_stage(save(tmp_path / "base.safetensors"))
    with buckets() as store:
        path = save("gs://bucket/cascade/base.safetensors")
        assert set(store) == {"/bucket/cascade/base.safetensors"}
        assert load_stage(path).digest == on_disk.digest
        assert load_stage_weights("gs://bucket/cascade/base.safetensors").digest == on_disk.digest
        with pytest.raises(
            ValueError, match=r"^gs://bucket/tsr1\.safetensors: no such weights file"
        ):
            load_stage("gs://bucket/tsr1.safetensors")
    assert not list((tmp_path / "copies").iterdir())


def test_a_file_from_before_a_field_was_added_has_its_default(tmp_path):
    path = save(tmp_path / "base.safetensors")
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del header["stage"]["unet"]["project_skips"]
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(header)})
    assert load_stage(path).stage == BASE


def test_the_digest_names_stage_and_values_to_the_bit(tmp_path):
    first = load_stage(save(tmp_path / "a.safetensors"))
    assert first.digest == load_stage(save(tmp_path / "b.safetensors")).digest
    assert first.digest == make_stage_model(BASE, drawn_params(BASE), text_digest="").digest
    nudged = drawn_params(BASE)
    nudged["out"]["conv"]["kernel"] = np.nextafter(nudged["out"]["conv"]["kernel"], 9).astype("f4")
    assert make_stage_model(BASE, nudged, text_digest="").digest != first.digest


def test_the_same_values_give_the_same_bytes(tmp_path):
    files = [save(tmp_path / f"{i}.safetensors", dtype="bfloat16") for i in range(2)]
    first, second = (open(path, "rb").read() for path in files)
    assert first == second


def changed(change):
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(drawn_params(BASE)).items()}
    change(flat)
    return traverse_util.unflatten_dict(flat)


KERNEL = ("out", "conv", "kernel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop(KERNEL), "out/conv/kernel: missing from the weights of base"),
        (lambda flat: flat.update({("x",): flat[KERNEL]}), "x: not a parameter of base"),
        (
            lambda flat: flat.update({KERNEL: flat[KERNEL][..., :2]}),
            r"out/conv/kernel: shape \(.* 2\), base has \(.* 3\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "base.safetensors", params=changed(change))
    assert not list(tmp_path.iterdir())
    # A file made by other means is refused in the same words, with its path.
    good = save(tmp_path / "good.safetensors")
    with safe_open(good, framework="numpy") as file:
        metadata = file.metadata()
    bad = tmp_path / "bad.safetensors"
    save_file(traverse_util.flatten_dict(changed(change), sep="/"), bad, metadata=metadata)
    with pytest.raises(ValueError, match=f"{bad}: {message}"):
        load_stage(str(bad))


def with_metadata(path, metadata):
    save_file({"x": np.zeros(2, np.float32)}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such weights file"),
        (lambda path: path.write_bytes(b"\x80\x04\x95 a pickle"), "not a safetensors file"),
        (lambda path: path.mkdir(), "not a safetensors file"),
        (lambda path: with_metadata(path, None), "holds no stage"),
        (lambda path: with_metadata(path, {METADATA_KEY: "{"}), "Expecting"),
        (lambda path: with_metadata(path, {METADATA_KEY: "[]"}), "format_version None"),
        (
            lambda path: with_metadata(path, {METADATA_KEY: json.dumps({"format_version": 2})}),
            "format_version 2, this library reads 1",
        ),
        (
            lambda path: with_metadata(path, {METADATA_KEY: json.dumps({"format_version": 1})}),
            "stage: missing",
        ),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_by_path(tmp_path, write, message):
    path = tmp_path / "base.safetensors"
    write(path)
    with pytest.raises(ValueError, match=rf"base\.safetensors: .*{message}"):
        load_stage(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


def test_a_folder_of_files_is_a_cascade(folder):
    cascade = load_cascade(weights=folder)
    assert cascade.stages == STAGES
    assert load_cascade(weights=folder, through="tsr1").stages == STAGES[:2]
    paths = {"base": folder / "base.safetensors"}
    assert load_cascade(weights=paths).stages == STAGES[:1]
    assert cascade.text.digest == text_model().digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "/no/such/folder"}, "weights: /no/such/folder is not a folder"),
        ({"weights": {"bass": "x.safetensors"}}, "weights: no stage 'bass'"),
        ({"weights": {"base": "/no/x.safetensors"}}, "/no/x.safetensors: no such weights file"),
        ({"weights": {"base": "/no/workdir"}}, "/no/workdir/checkpoints: no checkpoint there"),
        ({"through": "ssr3"}, "through: no stage 'ssr3'; there are base, tsr1, ssr1"),
        ({"config": "configs/cascade.py:tiny"}, "holds none of ssr2"),
        ({"config": "configs/stages/base.py:tiny"}, "config: has no stages"),
        (
            {"config": "configs/cascade.py:tiny", "through": "base"},
            r"base\.safetensors: stage\.unet\.stem_channels is 8, in this config it is 64",
        ),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_are_named(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_cascade(**{"weights": folder} | arguments)


def test_a_config_alone_has_no_weights():
    with pytest.raises(ValueError, match="weights: a config has none"):
        load_cascade("configs/cascade.py:tiny")


def test_a_stage_in_anothers_place_is_refused(folder, tmp_path):
    (tmp_path / "base.safetensors").write_bytes((folder / "ssr1.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds ssr1, not base"):
        load_cascade(weights=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds those of no stage"):
        load_cascade(weights=empty)


def test_weights_of_another_text_model_are_refused_and_both_are_named(tmp_path):
    save(tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match=f"base: .*{DIGEST}.*{text_model().digest[:12]}"):
        load_cascade(weights=tmp_path)


def test_a_cascade_begins_with_the_base(tmp_path):
    save(tmp_path / "ssr1.safetensors", stage=SSR1)
    with pytest.raises(ValueError, match="must be the base model"):
        load_cascade(weights=tmp_path)


def test_a_networks_shapes_are_traced_once(monkeypatch):
    """Tracing takes a second, and files of one network are checked again and again."""
    params = drawn_params(BASE)
    check_params(BASE, params)
    monkeypatch.setattr(stage_module, "init_params", None)
    check_params(dataclasses.replace(BASE, fps=1.0), params)
