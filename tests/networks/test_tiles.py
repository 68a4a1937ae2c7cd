"""A block in the order that a TPU's tiles want computes what it does in any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from fake_devices import printed_on

from imagen_video.networks.convs import TemporalConv
from imagen_video.networks.resnet import TemporalConvBlock
from imagen_video.networks.tiles import CLIPS_IN_TILES, FRAMES_FIRST, FRAMES_IN_TILES

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

    for clips, parts, tensor, width, cut, order in MESHES:
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


# Clips, parts of a clip, parts of channels, width, what is cut, and the order it asks for.
FEW_MESHES = """
        (2, 4, 2, 12, "frames", FRAMES_IN_TILES), (2, 4, 2, 8, "height", FRAMES_IN_TILES),
        (16, 1, 1, 8, "frames", CLIPS_IN_TILES), (8, 2, 2, 8, "frames", CLIPS_IN_TILES),
"""
MORE_MESHES = """
        (2, 4, 1, 16, "frames", FRAMES_IN_TILES), (2, 8, 1, 8, "frames", FRAMES_IN_TILES),
        (2, 1, 1, 8, "frames", FRAMES_IN_TILES), (8, 4, 1, 8, "height", CLIPS_IN_TILES),
"""


# The base's blocks, whose frames attend to each other.
ATTENDING = BLOCKS.replace('temporal="convolution"', 'temporal="attention"').replace(
    """(
            parts > 1 and cut == "frames" and order == FRAMES_IN_TILES
        )""",
    "True",
)


@pytest.mark.parametrize(
    "meshes",
    [FEW_MESHES, pytest.param(MORE_MESHES, marks=pytest.mark.slow)],
    ids=["few", "more"],
)
@pytest.mark.parametrize("program", [BLOCKS, ATTENDING], ids=["convolution", "attention"])
def test_a_block_for_tpus_equals_the_block_for_one_device(program, meshes):
    assert "equal blocks" in printed_on(8, program.replace("MESHES", f"({meshes.strip()})"))


@pytest.mark.parametrize("order", [FRAMES_FIRST, FRAMES_IN_TILES, CLIPS_IN_TILES])
def test_images_pass_a_temporal_convolution_as_they_are(order):
    h = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 8))
    h = rearrange(h, f"{FRAMES_FIRST} -> {order}")
    is_image = jnp.array([True, False])
    block = TemporalConvBlock(groups=2, order=order)
    params = block.init(jax.random.key(1), h)
    # Biases too, which begin as zeros.
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    images, videos = (
        rearrange(block.apply(params, h, mask), f"{order} -> {FRAMES_FIRST}")
        for mask in (is_image, None)
    )
    clip = rearrange(h, f"{order} -> {FRAMES_FIRST}")
    np.testing.assert_array_equal(images[0], clip[0])
    np.testing.assert_array_equal(images[1], videos[1])
    assert float(jnp.abs(videos - clip).min()) > 0


def test_a_temporal_convolution_is_the_same_in_any_order():
    h, y_bar = jax.random.normal(jax.random.key(0), (2, 2, 7, 4, 5, 8))
    conv = TemporalConv(8)
    params = jax.tree.map(lambda leaf: leaf + 0.5, conv.init(jax.random.key(1), h))
    params = jax.tree.map(lambda x: x * jax.random.normal(jax.random.key(2), x.shape), params)
    want, vjp = jax.vjp(conv.apply, params, h)
    for order in (FRAMES_IN_TILES, CLIPS_IN_TILES):

        def apply(params, h, order=order):
            h = TemporalConv(8, order=order).apply(
                params, rearrange(h, f"{FRAMES_FIRST} -> {order}")
            )
            return rearrange(h, f"{order} -> {FRAMES_FIRST}")

        got, own_vjp = jax.vjp(apply, params, h)
        np.testing.assert_allclose(got, want, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), own_vjp(y_bar), vjp(y_bar)
        )


ORDERS = """
    import jax
    from imagen_video.networks.tiles import CLIPS_IN_TILES, FRAMES_IN_TILES, clip_order
    from imagen_video.sharding.layout import Layout
    from imagen_video.sharding.mesh import MeshShape, make_mesh

    Layout.on_tpu = True
    for clips, data, order in (
        (8, 1, CLIPS_IN_TILES), (12, 1, FRAMES_IN_TILES), (8, 2, FRAMES_IN_TILES),
        (16, 2, CLIPS_IN_TILES), (8, 3, CLIPS_IN_TILES),  # 3 do not divide 8: all on each
    ):
        mesh = MeshShape(data=data, fsdp=1, context=1, tensor=1)
        layout = Layout(mesh=make_mesh(mesh, jax.devices()[:data]))
        clip = jax.ShapeDtypeStruct((clips, 4, 6, 6, 3), "float32")
        assert clip_order(layout, clip) == order, (clips, data)
    print("right orders")
"""


def test_clips_lie_in_tiles_where_a_device_has_a_multiple_of_eight():
    assert "right orders" in printed_on(3, ORDERS)
