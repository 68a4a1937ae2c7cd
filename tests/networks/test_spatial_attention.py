"""Spatial attention against one softmax over a pixel's frame and caption, written as loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.networks.attention import SpatialAttention
from imagen_video.networks.norms import GroupNorm

HEAD_DIM, GROUPS = 4, 2
H = jax.random.normal(jax.random.key(0), (2, 3, 2, 3, 8))
TOKENS = jax.random.normal(jax.random.key(1), (4, 5, 6))
MASK = jnp.arange(5) < jnp.array([5, 3, 1, 0])[:, None]
INDEX = jnp.array([[0, 0, 3], [2, 1, 2]])


def by_loops(params, h, tokens, mask, index, attend_pixels):
    """For every frame, head and pixel, in float64: a softmax over the list of what it may read."""
    normed = np.asarray(GroupNorm(GROUPS).apply({"params": params["norm"]}, h), np.float64)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    text = p["text"]
    out = np.zeros((*h.shape[:-1], h.shape[-1] // HEAD_DIM, HEAD_DIM))
    for b, f, y, x, n in np.ndindex(out.shape[:-1]):
        caption = index[b, f]
        keys, values = [text["null_key"][0, 0, n]], [text["null_value"][0, 0, n]]
        for token in np.asarray(tokens[caption], np.float64)[np.asarray(mask[caption])]:
            keys.append(token @ text["text_key"]["kernel"][:, n])
            values.append(token @ text["text_value"]["kernel"][:, n])
        for pixel in normed[b, f].reshape(-1, h.shape[-1]) if attend_pixels else []:
            keys.append(pixel @ p["key"]["kernel"][:, n])
            values.append(pixel @ p["value"]["kernel"][:, n])
        e = np.array(keys) @ (normed[b, f, y, x] @ p["query"]["kernel"][:, n]) / np.sqrt(HEAD_DIM)
        weights = np.exp(e - e.max())
        out[b, f, y, x, n] = weights @ np.array(values) / weights.sum()
    return h + np.einsum("bfhwnd,ndc->bfhwc", out, p["out"]["kernel"]) + p["out"]["bias"]


@pytest.mark.parametrize("attend_pixels", [True, False])
def test_a_pixel_reads_its_frame_and_its_frames_caption_in_one_softmax(attend_pixels):
    module = SpatialAttention(HEAD_DIM, GROUPS, attend_pixels)
    params = nn.unbox(module.init(jax.random.key(2), H, TOKENS, MASK, INDEX)["params"])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    leaves = [0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    params = jax.tree.unflatten(tree, leaves)

    found = module.apply({"params": params}, H, TOKENS, MASK, INDEX)
    expected = by_loops(params, H, TOKENS, MASK, INDEX, attend_pixels)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # One caption a clip, as in sampling, is that caption in each of its frames.
    found = module.apply({"params": params}, H, TOKENS[:2], MASK[:2])
    expected = by_loops(params, H, TOKENS, MASK, jnp.array([[0] * 3, [1] * 3]), attend_pixels)
    np.testing.assert_allclose(found, expected, atol=2e-5)
