"""From a work directory to weights that sample: the average is exported, and nothing else."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import traverse_util
from memory_bucket import buckets
from micro_cascade import BASE, stage_run, text_model
from safetensors.numpy import load_file

from imagen_video.cascade.weights import load_stage
from imagen_video.loading import load_cascade, load_stage_weights
from imagen_video.training.checkpoints import Checkpoints
from imagen_video.training.export import export_run, restore_stage
from imagen_video.training.optimizer import OptimizerConfig, make_optimizer
from imagen_video.training.stage_run import train_stage
from imagen_video.training.state import init_state

# Parameters held in bfloat16 for sampling must not make a float32 export any coarser.
PLAIN = dataclasses.replace(BASE.unet, attention=("none",), temporal="convolution")
COARSE = dataclasses.replace(BASE, unet=PLAIN, sample_param_dtype="bfloat16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("workdir")
    state = train_stage(stage_run(COARSE, num_steps=2), text=text_model(), workdir=str(workdir))
    return workdir, jax.tree.map(np.asarray, state)


def assert_equal(params, expected):
    flat, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, expected))
    assert flat.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(flat[name], value, err_msg=name)


def test_the_average_is_restored_and_not_the_last_parameters(trained):
    workdir, state = trained
    stage, params, text_digest = restore_stage(str(workdir))
    assert stage == COARSE and text_digest == text_model().digest
    assert_equal(params, state.ema_params)
    with pytest.raises(AssertionError):
        assert_equal(params, state.params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_holds_the_average_in_the_dtype_asked_for(trained, tmp_path, dtype):
    workdir, state = trained
    (path,) = export_run(str(workdir), tmp_path / "new" / "folder", dtype=dtype)
    assert path == tmp_path / "new" / "folder" / "base.safetensors"
    as_float32 = dataclasses.replace(COARSE, sample_param_dtype="float32")
    model = load_stage_weights(path, stage=as_float32)
    if dtype == "float32":
        stored = load_file(path)
        wanted = traverse_util.flatten_dict(state.ema_params, sep="/")
        for name, value in wanted.items():
            np.testing.assert_array_equal(stored[name], value, err_msg=name)
    rounded = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), state.ema_params)
    assert_equal(
        jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), model.params), rounded
    )
    assert load_stage(str(path)).text_digest == text_model().digest


def test_a_run_is_exported_into_a_bucket(trained, tmp_path):
    workdir, _ = trained
    (on_disk,) = export_run(str(workdir), tmp_path, dtype="bfloat16")
    with buckets() as store:
        out = epath.Path("gs://bucket/cascade")
        assert export_run(str(workdir), out, dtype="bfloat16") == [out / "base.safetensors"]
        assert store["/bucket/cascade/base.safetensors"].getvalue() == on_disk.read_bytes()


def test_an_export_takes_its_sampling_from_another_record(trained, tmp_path):
    workdir, _ = trained
    few = dataclasses.replace(COARSE.sampling, num_steps=2)
    other = dataclasses.replace(COARSE, sampling=few, oscillating=None, fps=99.0)
    (path,) = export_run(str(workdir), tmp_path, dtype="float32", sampled_as=other)
    model = load_stage(str(path))
    assert model.stage == dataclasses.replace(COARSE, sampling=few, oscillating=None)
    with pytest.raises(ValueError, match="a run of base, not of tsr1"):
        export_run(
            str(workdir),
            tmp_path,
            dtype="float32",
            sampled_as=dataclasses.replace(COARSE, name="tsr1"),
        )


def test_a_work_directory_can_be_sampled_from_as_it_is(trained, tmp_path):
    workdir, _ = trained
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "base").symlink_to(workdir)
    cascade = load_cascade(weights=tmp_path / "weights")
    assert cascade.stages == (COARSE,)
    export_run(str(workdir), tmp_path, dtype="bfloat16")
    exported = load_cascade(weights={"base": tmp_path / "base.safetensors"})
    assert cascade.models[0].digest == exported.models[0].digest


def checkpoint_of(workdir, config):
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), 10)
    state = init_state(lambda key: {"w": jax.random.normal(key, (2,))}, optimizer, seed=0)
    with Checkpoints(str(workdir / "checkpoints")) as checkpoints:
        checkpoints.save(state, data={}, config=config)


@pytest.mark.parametrize("config", [None, {}, {"run": 3}, {"run": {"kind": "OtherRun"}}], ids=str)
def test_a_checkpoint_of_another_program_is_refused(tmp_path, config):
    checkpoint_of(tmp_path, config)
    with pytest.raises(ValueError, match="of no training run of this library"):
        export_run(str(tmp_path), tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="not of a stage"):
        load_stage_weights(tmp_path)


def test_a_work_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint there"):
        export_run(str(tmp_path), tmp_path / "out", dtype="float32")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint"):
        export_run(str(tmp_path), tmp_path / "out", dtype="float32")


def test_the_run_is_kept_beside_its_checkpoints(trained):
    workdir, _ = trained
    config = json.loads((workdir / "config.json").read_text())
    assert config["run"]["stage"]["name"] == "base"
    assert config["text_digest"] == text_model().digest
