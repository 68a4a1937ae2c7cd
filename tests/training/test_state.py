"""The state a run starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_video.training.state import abstract_state, init_state


def init_fn(key):
    return {"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.zeros(4)}


def test_average_starts_at_the_parameters_in_memory_of_its_own():
    state = init_state(init_fn, optax.adam(1e-3), seed=3)
    np.testing.assert_array_equal(state.params["kernel"], state.ema_params["kernel"])
    pointers = [
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema_params))
    ]
    assert len(set(pointers)) == 4
    assert int(state.step) == int(state.skipped) == 0


def test_parameters_follow_the_seed():
    one, same, other = (init_state(init_fn, optax.sgd(1.0), seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.params["kernel"], same.params["kernel"])
    assert np.abs(one.params["kernel"] - other.params["kernel"]).max() > 1e-2


def test_abstract_state_has_the_shapes_of_the_real_one():
    optimizer = optax.adam(1e-3)
    state = init_state(init_fn, optimizer, seed=0)
    assert jax.eval_shape(lambda: state) == abstract_state(init_fn, optimizer)


def test_parameters_that_are_not_float32_are_refused():
    with pytest.raises(ValueError, match=r"\['scale'\] is bfloat16, must be float32"):
        init_state(lambda key: {"scale": jnp.ones(2, jnp.bfloat16)}, optax.sgd(1.0), seed=0)
