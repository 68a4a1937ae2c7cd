"""Temporal attention against the equations of Shaw et al. (arXiv 1803.02155), written as loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_video.networks.attention import TemporalAttention
from imagen_video.networks.norms import GroupNorm

FRAMES, CHANNELS, HEAD_DIM, GROUPS = 4, 8, 4, 2
H = jax.random.normal(jax.random.key(0), (2, FRAMES, 1, 2, CHANNELS))


def drawn(max_offset):
    module = TemporalAttention(HEAD_DIM, GROUPS, max_offset)
    params = nn.unbox(module.init(jax.random.key(1), H)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return module, jax.tree.unflatten(tree, leaves)


def by_the_equations(params, h, max_offset):
    """Eqs. 3 and 4 for every pixel, head and query frame, in float64."""
    normed = GroupNorm(GROUPS).apply({"params": params["norm"]}, h)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    q, k, v = (
        np.einsum("bfhwc,cnd->bfhwnd", np.asarray(normed, np.float64), p[name]["kernel"])
        for name in ("query", "key", "value")
    )
    z = np.zeros_like(q)
    for b, i, y, x, n in np.ndindex(q.shape[:-1]):
        e, values = [], []
        for j in range(FRAMES):
            offset = int(np.clip(i - j, -max_offset, max_offset)) + max_offset
            a_k, a_v = p["relative_key"][offset], p["relative_value"][offset]
            e.append(q[b, i, y, x, n] @ (k[b, j, y, x, n] + a_k) / np.sqrt(HEAD_DIM))
            values.append(v[b, j, y, x, n] + a_v)
        weights = np.exp(e - np.max(e))
        z[b, i, y, x, n] = weights @ np.array(values) / weights.sum()
    return h + np.einsum("bfhwnd,ndc->bfhwc", z, p["out"]["kernel"]) + p["out"]["bias"]


def test_it_is_equations_3_and_4():
    for max_offset in (FRAMES - 1, 1):
        module, params = drawn(max_offset)
        found = module.apply({"params": params}, H)
        np.testing.assert_allclose(found, by_the_equations(params, H, max_offset), atol=2e-5)
    far = by_the_equations(params, H, 1)
    near = dict(params, relative_value=params["relative_value"][::-1])
    assert np.abs(by_the_equations(near, H, 1) - far).max() > 1e-2


def test_equal_frames_can_be_told_apart_by_their_place():
    """What motion needs: with keys and values alike everywhere, only the offsets' values differ."""
    module, params = drawn(FRAMES - 1)
    still = jnp.repeat(H[:, :1], FRAMES, axis=1)
    out = module.apply({"params": params}, still)
    distances = [np.abs(out[:, i] - out[:, j]).max() for i in range(FRAMES) for j in range(i)]
    assert min(distances) > 1e-2
