"""Softmaxes against JAX's own, values and gradients, and what is kept of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.networks.attention import TemporalAttention
from imagen_video.networks.blocks import REMATERIALISED
from imagen_video.networks.softmax import frame_softmax, joint_softmax


@pytest.mark.parametrize("pixels", [(6,), (2, 3)])
def test_the_softmax_over_frames_is_jaxs_and_its_gradient_too(pixels):
    logits, dp = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 5, *pixels)) * 3
    logits = logits.at[0, :, 1, 2].set(-jnp.inf)  # A frame that is not attended to.
    found, vjp = jax.vjp(frame_softmax, logits)
    expected, expected_vjp = jax.vjp(lambda x: jax.nn.softmax(x, axis=3), logits)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(vjp(dp)[0], expected_vjp(dp)[0], atol=1e-6)
    # Forward, too, as objectives with a derivative along the trajectory need it.
    _, found = jax.jvp(frame_softmax, (logits,), (dp,))
    _, expected = jax.jvp(lambda x: jax.nn.softmax(x, axis=3), (logits,), (dp,))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_half_precision_is_rounded_once():
    logits = (8 * jax.random.normal(jax.random.key(1), (1, 1, 2, 16, 7))).astype(jnp.bfloat16)
    found, exact = frame_softmax(logits), jax.nn.softmax(logits.astype(jnp.float32), axis=3)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_a_joint_softmax_is_that_of_all_keys_in_a_row():
    near, far = jax.random.normal(jax.random.key(2), (3, 4, 2, 5)), jnp.ones((3, 4, 6)) * 2
    rows = jnp.concatenate([near.reshape(3, 4, 10), far], axis=-1)
    expected = jax.nn.softmax(rows, axis=-1)
    found_near, found_far = joint_softmax([near, far], [2, 1])
    np.testing.assert_allclose(found_near.reshape(3, 4, 10), expected[..., :10], atol=1e-6)
    np.testing.assert_allclose(found_far, expected[..., 10:], atol=1e-6)


def test_a_backward_pass_that_keeps_products_takes_no_exponential_again():
    h = jnp.ones((1, 4, 1, 2, 8))

    def exponentials(remat):
        module = TemporalAttention(4, 2, 3)
        params = module.init(jax.random.key(0), h)
        apply = jax.checkpoint(module.apply, policy=REMATERIALISED[remat])
        program = jax.make_jaxpr(lambda h: jax.vjp(apply, params, h)[1](h))(h)
        return str(program).count(" exp ")

    assert exponentials("products") == 1
    assert exponentials("blocks") == 2
