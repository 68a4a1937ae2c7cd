"""Patches of pixels in channels: where each pixel goes, on every platform."""

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.networks import patches
from imagen_video.profiling.flops import count_flops

SHAPE = (2, 3, 8, 12, 5)


@pytest.fixture(params=["float32", "bfloat16"])
def clip(request):
    return jax.random.normal(jax.random.key(0), SHAPE).astype(request.param)


def test_every_pixel_goes_where_the_definition_says(clip):
    for fold in (patches.space_to_depth, patches.fold_by_moves, patches.fold_by_product):
        folded = np.asarray(fold(clip, 4).astype(jnp.float32))
        for y, x in ((0, 0), (5, 2), (7, 11)):
            at = 4 * (y % 4) + x % 4
            pixel = folded[:, :, y // 4, x // 4, 5 * at : 5 * at + 5]
            np.testing.assert_array_equal(pixel, np.asarray(clip.astype(jnp.float32))[:, :, y, x])


def test_unfolding_is_the_inverse(clip):
    for unfold in (patches.depth_to_space, patches.unfold_by_moves, patches.unfold_by_product):
        np.testing.assert_array_equal(unfold(patches.space_to_depth(clip, 2), 2), clip)


def test_gradients_of_the_products_are_those_of_the_moves(clip):
    def gradient(fold, h):
        weights = jnp.arange(fold(h, 2).size, dtype=jnp.float32).reshape(fold(h, 2).shape)
        return jax.grad(lambda h: jnp.sum(weights * fold(h, 2).astype(jnp.float32)))(h)

    for product, moves in (
        (patches.fold_by_product, patches.fold_by_moves),
        (patches.unfold_by_product, patches.unfold_by_moves),
    ):
        h = einops.rearrange(clip, "b f (h p) w c -> b f h w (p c)", p=2)[..., :8]
        np.testing.assert_array_equal(gradient(product, h), gradient(moves, h))


@pytest.mark.parametrize("move", [patches.space_to_depth, patches.depth_to_space])
def test_tpus_take_a_product_that_no_model_flops_count(move):
    h = jax.ShapeDtypeStruct((1, 2, 8, 8, 8), jnp.bfloat16)

    def moved(h):
        return move(h, 2)

    def gradient(h):
        return jax.grad(lambda h: jnp.sum(jnp.square(moved(h))))(h)

    for function in (moved, gradient):
        traced = jax.jit(function).trace(h)
        for platform, has_product in (("tpu", True), ("cpu", False), ("cuda", False)):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert ("dot_general" in text) == has_product
        assert "conditional" not in traced.lower().compile().as_text()
        assert count_flops(function, h) == 0


def test_patches_of_one_pixel_are_the_clip_itself(clip):
    assert patches.space_to_depth(clip, 1) is clip
    assert patches.depth_to_space(clip, 1) is clip
