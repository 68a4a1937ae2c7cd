"""GroupNorm against flax.linen's, one frame at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from imagen_video.networks.norms import GroupNorm
from imagen_video.networks.tiles import CLIPS_IN_TILES, FRAMES_FIRST, FRAMES_IN_TILES


@pytest.mark.parametrize("order", [FRAMES_FIRST, FRAMES_IN_TILES, CLIPS_IN_TILES])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_each_frame_is_normalised_as_flax_normalises_it_alone(order, dtype, tolerance):
    h = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6), dtype)
    h = h.at[0, 1].set(0.5)  # a frame of one colour
    params = {"scale": 1 + jnp.arange(6.0) / 6, "bias": jnp.arange(6.0) - 2}

    def ours(h):
        norm = GroupNorm(2, dtype=jnp.dtype(dtype), order=order)
        h = norm.apply(
            {"params": {"group_norm": params}}, rearrange(h, f"{FRAMES_FIRST} -> {order}")
        )
        return rearrange(h, f"{order} -> {FRAMES_FIRST}")

    def flax(h):
        norm = nn.GroupNorm(num_groups=2, epsilon=1e-6, dtype=jnp.dtype(dtype))
        frames = rearrange(h, "b f h w c -> (b f) 1 h w c")
        normed = [norm.apply({"params": params}, frame) for frame in frames]
        return rearrange(jnp.stack(normed), "(b f) 1 h w c -> b f h w c", b=2)

    for actual, expected in zip(
        (ours(h), jax.grad(lambda h: (ours(h) ** 3).sum())(h)[1]),
        (flax(h), jax.grad(lambda h: (flax(h) ** 3).sum())(h)[1]),
        strict=True,
    ):
        scale = jnp.abs(expected.astype(jnp.float32)).max()
        np.testing.assert_allclose(
            actual.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance * scale
        )


@pytest.mark.parametrize("order", [FRAMES_FIRST, FRAMES_IN_TILES, CLIPS_IN_TILES])
@pytest.mark.parametrize("frames", [1, 3])
def test_film_scales_and_shifts_what_was_normalised(frames, order):
    h = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
    film = jax.random.normal(jax.random.key(1), (2, frames, 12))
    params = {"group_norm": {"scale": 1 + jnp.arange(6.0) / 6, "bias": jnp.arange(6.0) - 2}}

    def at_once(h, film):
        norm = GroupNorm(2, order=order)
        h = norm.apply({"params": params}, rearrange(h, f"{FRAMES_FIRST} -> {order}"), film=film)
        return rearrange(h, f"{order} -> {FRAMES_FIRST}")

    def afterwards(h, film):
        scale, shift = (x[:, :, None, None] for x in jnp.split(film, 2, axis=-1))
        return GroupNorm(2).apply({"params": params}, h) * (1 + scale) + shift

    found, vjp = jax.vjp(at_once, h, film)
    expected, expected_vjp = jax.vjp(afterwards, h, film)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    for actual, other in zip(vjp(h**2), expected_vjp(h**2)):
        np.testing.assert_allclose(actual, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("order", [FRAMES_FIRST, CLIPS_IN_TILES])
def test_rows_to_be_zero_are_and_others_are_as_without(order):
    h = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
    params = {"group_norm": {"scale": 1 + jnp.arange(6.0) / 6, "bias": jnp.arange(6.0) - 2}}
    zero = jnp.array([True, False])

    def normed(h, zero):
        norm = GroupNorm(2, order=order)
        h = norm.apply({"params": params}, rearrange(h, f"{FRAMES_FIRST} -> {order}"), zero=zero)
        return rearrange(h, f"{order} -> {FRAMES_FIRST}")

    np.testing.assert_array_equal(normed(h, zero)[0], 0)
    np.testing.assert_array_equal(normed(h, zero)[1], normed(h, None)[1])
    weights = jax.random.normal(jax.random.key(1), h.shape)
    gradient = jax.grad(lambda h, zero: (weights * normed(h, zero)).sum())
    np.testing.assert_array_equal(gradient(h, zero)[0], 0)
    np.testing.assert_allclose(gradient(h, zero)[1], gradient(h, None)[1], rtol=1e-6)
