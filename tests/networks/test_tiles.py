"""A block in the order that a TPU's tiles want computes what it does in any other."""

import pytest
from fake_devices import printed_on

# Devices of a CPU that call themselves TPUs: orders and layouts of memory are taken, values are
# those of a CPU.
BLOCKS = """
    import flax.linen as nn
    import jax
    import numpy as np
    from einops import rearrange
    from imagen_video.networks.conditioning import Context
    from imagen_video.networks.resnet import SpaceTimeBlock
    from imagen_video.networks.tiles import (
        CLIPS_IN_TILES, FRAMES_FIRST, FRAMES_IN_TILES, clip_order
    )
    from imagen_video.sharding.layout import Layout
    from imagen_video.sharding.mesh import MeshShape, make_mesh

    Layout.on_tpu = True
    def context(clips):
        emb = jax.random.normal(jax.random.key(1), (clips, 1, 6))
        is_image = np.arange(clips) % 2 == 1
        return Context(
            emb=emb, tokens=None, text_mask=None, caption_index=None, is_image=is_image
        )

    def block(layout, order=FRAMES_FIRST):
        return SpaceTimeBlock(
            features=16, groups=4, head_dim=8, attention="none", temporal="convolution",
            max_offset=7, order=order, layout=layout,
        )

    def drawn_params(h):
        init = lambda: block(None).init(jax.random.key(2), h, context(len(h)))
        shapes = nn.unbox(jax.eval_shape(init))
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(3), len(leaves))
        drawn = [jax.random.normal(k, leaf.shape) / 4 for k, leaf in zip(keys, leaves)]
        return jax.tree.unflatten(tree, drawn)

    def value_and_gradients(layout, params, h, y_bar):
        order = clip_order(layout, h)

        def apply(params, h):
            in_order = lambda h: block(layout, order).apply(params, h, context(len(y_bar)))
            return rearrange(
                in_order(rearrange(h, f"{FRAMES_FIRST} -> {order}")), f"{order} -> {FRAMES_FIRST}"
            )

        y, vjp = jax.vjp(apply, params, h)
        return y, vjp(y_bar)

    for clips, parts, tensor, width, cut, order in (
        (2, 4, 1, 16, "frames", FRAMES_IN_TILES), (2, 4, 2, 12, "frames", FRAMES_IN_TILES),
        (2, 8, 1, 8, "frames", FRAMES_IN_TILES), (2, 4, 2, 8, "height", FRAMES_IN_TILES),
        (2, 1, 1, 8, "frames", FRAMES_IN_TILES), (16, 1, 1, 8, "frames", CLIPS_IN_TILES),
        (8, 2, 2, 8, "frames", CLIPS_IN_TILES), (8, 4, 1, 8, "height", CLIPS_IN_TILES),
    ):
        devices = jax.devices()[: max(parts * tensor, 2)]
        data = len(devices) // (parts * tensor)
        mesh = MeshShape(data=data, fsdp=1, context=parts, tensor=tensor)
        layout = Layout(mesh=make_mesh(mesh, devices), context=cut)
        h = jax.random.normal(jax.random.key(0), (clips, 8, 16, width, 8))
        y_bar = jax.random.normal(jax.random.key(4), (clips, 8, 16, width, 16))
        assert clip_order(layout, h) == order
        params = drawn_params(h)
        want = jax.jit(value_and_gradients, static_argnums=0)(None, params, h, y_bar)
        program = jax.jit(value_and_gradients, static_argnums=0).lower(layout, params, h, y_bar)
        assert ("LayoutConstraint" in program.as_text()) == (
            parts > 1 and cut == "frames" and order == FRAMES_IN_TILES
        )
        got = program.compile()(params, h, y_bar)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
            got,
            want,
        )
    print("equal blocks")
"""


# The base's blocks, whose frames attend to each other.
ATTENDING = BLOCKS.replace('temporal="convolution"', 'temporal="attention"').replace(
    """(
            parts > 1 and cut == "frames" and order == FRAMES_IN_TILES
        )""",
    "True",
)


@pytest.mark.parametrize("program", [BLOCKS, ATTENDING], ids=["convolution", "attention"])
def test_a_block_for_tpus_equals_the_block_for_one_device(program):
    assert "equal blocks" in printed_on(8, program)
