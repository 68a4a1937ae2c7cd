"""What the network reads of a caption's embedding is bfloat16, whatever XLA would rather do."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imagen_video.networks.captions import as_cached


def test_rounding_is_that_of_a_stored_bfloat16_also_inside_a_program():
    rng = np.random.default_rng(0)
    text_emb = (rng.normal(size=(3, 5, 64)) * 10.0 ** rng.integers(-6, 6, (3, 5, 64))).astype("f4")
    stored = text_emb.astype(ml_dtypes.bfloat16)
    expected = stored.astype(np.float32)
    assert (expected != text_emb).mean() > 0.9
    for rounded in (as_cached, jax.jit(as_cached)):
        np.testing.assert_array_equal(rounded(jnp.asarray(text_emb)), expected)
        np.testing.assert_array_equal(rounded(jnp.asarray(stored)), expected)
    # Fused with what comes before and after it.
    double = jax.jit(lambda x: as_cached(x * 3) * 2)(text_emb)
    np.testing.assert_array_equal(
        double, (text_emb * np.float32(3)).astype(ml_dtypes.bfloat16).astype(np.float32) * 2
    )
