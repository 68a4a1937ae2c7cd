"""The softmax against JAX's own, values and gradients, and what is kept of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.networks.attention import SpatialAttention, TemporalAttention
from imagen_video.networks.blocks import REMATERIALISED
from imagen_video.networks.softmax import softmax


@pytest.mark.parametrize("axis", [3, -1])
def test_the_softmax_is_jaxs_and_its_gradient_too(axis):
    logits, dp = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 5, 6)) * 3
    unseen = jnp.arange(logits.shape[axis]) == 2  # A key that half of the queries do not attend to.
    unseen = jnp.expand_dims(unseen, [i for i in range(5) if i != axis % 5])
    logits = logits.at[:, 1].set(jnp.where(unseen[0], -jnp.inf, logits[:, 1]))
    found, vjp = jax.vjp(lambda x: softmax([x], axis)[0], logits)
    expected, expected_vjp = jax.vjp(lambda x: jax.nn.softmax(x, axis=axis), logits)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    np.testing.assert_allclose(vjp(dp)[0], expected_vjp(dp)[0], atol=5e-6)
    # Forward, too, as objectives with a derivative along the trajectory need it.
    _, found = jax.jvp(lambda x: softmax([x], axis)[0], (logits,), (dp,))
    _, expected = jax.jvp(lambda x: jax.nn.softmax(x, axis=axis), (logits,), (dp,))
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("highest", [0, 4, 8])  # In each part; far above what exp can take.
def test_parts_are_one_softmax_of_all_keys(highest):
    logits, dp = jax.random.normal(jax.random.key(2), (2, 2, 3, 9)) * 3
    logits = logits.at[..., highest].add(120)
    cut = lambda x: [x[..., :1], x[..., 1:6], x[..., 6:]]  # noqa: E731
    joined = lambda x: jnp.concatenate(softmax(cut(x), -1), -1)  # noqa: E731
    found, vjp = jax.vjp(joined, logits)
    expected, expected_vjp = jax.vjp(lambda x: jax.nn.softmax(x), logits)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    np.testing.assert_allclose(vjp(dp)[0], expected_vjp(dp)[0], atol=5e-6)


def test_half_precision_is_rounded_once():
    logits = (8 * jax.random.normal(jax.random.key(1), (1, 1, 2, 16, 7))).astype(jnp.bfloat16)
    found, exact = softmax([logits], 3)[0], jax.nn.softmax(logits.astype(jnp.float32), axis=3)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_a_backward_pass_finds_probabilities_what_was_read_and_the_statistics_of_norms():
    h = jnp.ones((1, 4, 1, 2, 8))
    text = jnp.ones((1, 3, 8)), jnp.ones((1, 3), bool)

    def counts(module, remat, *args):
        """Exponentials, products and sums of the module with its gradient."""
        params = module.init(jax.random.key(0), h, *args)
        apply = module.apply
        if remat:
            apply = jax.checkpoint(apply, policy=REMATERIALISED[remat])
        program = jax.make_jaxpr(lambda h: jax.vjp(apply, params, h, *args)[1](h))(h)
        names = (" exp ", " dot_general[", " reduce_sum[")
        return np.array([str(program).count(name) for name in names])

    for module, args in ((TemporalAttention(4, 2, 3), ()), (SpatialAttention(4, 2), text)):
        # Means over pixels are found, but those over groups of channels, a mean and a square, not.
        once = counts(module, None, *args) + np.array([0, 0, 2])
        np.testing.assert_array_equal(counts(module, "products", *args), once)
        assert np.all(counts(module, "blocks", *args) > once)
