"""What the network reads of a caption's embedding, rounded and carried to its frames."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imagen_video.networks.captions import as_cached, captions_of_frames
from imagen_video.sharding.layout import Layout
from imagen_video.sharding.mesh import MeshShape, make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class InParts(Layout):
    """One device that holds a batch as that many would."""

    parts: int

    @property
    def batch_shards(self):
        return self.parts


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_parts_of_a_batch_take_their_own_captions_to_the_last_bit(dtype):
    parts, m, rows, frames = 3, 6, 2, 4
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(parts * m, 5, 7)) * 10.0 ** rng.integers(-6, 6, (5, 7)))
    values = values > 0 if dtype == "bool" else values.astype(dtype)
    own = rng.integers(m, size=(parts, rows, frames))
    index = jnp.asarray((own + m * np.arange(parts)[:, None, None]).reshape(-1, frames))
    one_device = make_mesh(MeshShape())
    layout = InParts(mesh=one_device, parts=parts)
    taken = jax.jit(lambda v, i: captions_of_frames(v, i, layout=layout))(values, index)
    assert taken.dtype == values.dtype
    np.testing.assert_array_equal(taken, np.asarray(values)[index])
    # One part, and parts that the rows cannot be cut into.
    for layout in (None, InParts(mesh=one_device, parts=4)):
        np.testing.assert_array_equal(captions_of_frames(values, index, layout=layout), taken)
