"""Sums of residual branches: what a rematerialised backward pass finds."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_video.networks.blocks import REMATERIALISED
from imagen_video.networks.conditioning import Context
from imagen_video.networks.resnet import SpaceTimeBlock


def test_the_backward_pass_finds_the_sum_and_neither_of_its_parts():
    # The width changes, so that what the branch goes around is a convolution's output, too.
    block = nn.remat(SpaceTimeBlock, policy=REMATERIALISED["products"])(
        features=16,
        groups=4,
        head_dim=8,
        attention="none",
        temporal="convolution",
        max_offset=2,
    )
    h, emb = jnp.ones((2, 3, 4, 5, 8)), jnp.ones((2, 1, 6))
    context = Context(emb=emb, tokens=None, text_mask=None, caption_index=None, is_image=None)

    def kept(params, h):
        return jax.vjp(lambda *args: block.apply(*args, context), params, h)[1]

    params = nn.unbox(jax.eval_shape(lambda: block.init(jax.random.key(0), h, context)))
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(kept, params, h))]
    # The first convolution's output and the sum.
    assert sizes.count(2 * 3 * 4 * 5 * 16) == 2
