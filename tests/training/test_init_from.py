"""Parameters of another run or of an exported file, where a state wants them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from micro_cascade import BASE, TSR1, drawn_params, text_model, write_weights

from imagen_video.cascade.stage import init_stage_params
from imagen_video.cascade.weights import save_stage
from imagen_video.loading import load_stage_weights
from imagen_video.training.init_from import params_of, with_params
from imagen_video.training.run_text import check_same_text
from imagen_video.training.state import init_state


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(write_weights(tmp_path_factory.mktemp("weights"), (TSR1,)) / "tsr1.safetensors")


def test_a_file_holds_what_was_exported(file):
    like = jax.tree.map(jnp.zeros_like, drawn_params(TSR1))
    found, wanted = params_of(file, like=like), drawn_params(TSR1)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(wanted)))


def test_no_bit_is_lost_to_how_the_stage_is_sampled(tmp_path):
    stage = dataclasses.replace(TSR1, sample_param_dtype="bfloat16")
    path, wanted = str(tmp_path / "tsr1.safetensors"), drawn_params(TSR1)
    save_stage(path, stage, wanted, text_digest=text_model().digest, dtype="float32")
    like = jax.tree.map(jnp.zeros_like, wanted)
    in_float32 = load_stage_weights(path, stage=TSR1).params
    for found in (params_of(path, like=like), in_float32):
        assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(wanted)))
    assert jax.tree.leaves(load_stage_weights(path).params)[0].dtype == jnp.bfloat16


def test_a_file_of_another_network_is_refused(file):
    with pytest.raises(ValueError, match=r"tsr1.safetensors/\S+ is .* but .* in this config"):
        params_of(file, like=drawn_params(BASE))
    with pytest.raises(ValueError, match="no such weights file"):
        params_of(file.replace("tsr1", "ssr9"), like=drawn_params(TSR1))


def test_a_file_made_with_another_text_model_is_refused(file, monkeypatch):
    check_same_text(file, text_model())
    monkeypatch.setattr(type(text_model()), "digest", "0123456789abcdef")
    with pytest.raises(ValueError, match=r"was trained with text model .* but the run reads"):
        check_same_text(file, text_model())


def test_a_state_keeps_copies_of_its_own():
    state = init_state(lambda key: init_stage_params(TSR1, key), optax.sgd(1.0), seed=0)
    given = drawn_params(TSR1)
    started = with_params(state, given)
    for tree in (started.params, started.ema_params):
        for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(given)):
            assert np.array_equal(ours, theirs)
            assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()
