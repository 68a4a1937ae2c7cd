"""Convolutions of clips whose height or frames are cut over devices."""

from fake_devices import printed_on

SHARDED = """
    import functools
    import jax
    import numpy as np
    from imagen_video.networks.convs import SpatialConv
    from imagen_video.sharding.layout import ShardingConfig, make_layout
    from imagen_video.sharding.mesh import MeshShape

    assert jax.device_count() == 4
    mesh = MeshShape(data=1, fsdp=1, context=4, tensor=1)
    layout = make_layout(ShardingConfig(mesh=mesh, context="height", min_rows=3))
    for rows, stride, is_cut in ((32, 2, True), (24, 2, True), (20, 2, False), (24, 4, False)):
        h = jax.random.normal(jax.random.key(0), (1, 2, rows, 8, 4))
        conv = functools.partial(SpatialConv, 4, stride=stride)
        params = conv().init(jax.random.key(1), h)
        program = jax.jit(conv(layout=layout).apply).lower(params, h).compile()
        np.testing.assert_allclose(program(params, h), conv().apply(params, h), atol=1e-5)
        assert ("collective-permute" in program.as_text()) == is_cut, rows
    print("sharded convolutions ok")
"""


CUT_FRAMES = """
    import jax
    import numpy as np
    from einops import rearrange
    from imagen_video.networks.convs import TemporalConv
    from imagen_video.networks.tiles import CLIPS_IN_TILES, FRAMES_FIRST, FRAMES_IN_TILES
    from imagen_video.sharding.layout import ShardingConfig, make_layout
    from imagen_video.sharding.mesh import MeshShape

    layout = make_layout(ShardingConfig(mesh=MeshShape(data=1, fsdp=1, context=4, tensor=1)))
    for frames in (4, 8, 12):
        h = jax.random.normal(jax.random.key(0), (2, frames, 3, 5, 4))
        params = TemporalConv(6).init(jax.random.key(1), h)
        params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(2), x.shape), params)
        want = TemporalConv(6).apply(params, h)
        for order in (FRAMES_FIRST, FRAMES_IN_TILES, CLIPS_IN_TILES):
            conv = TemporalConv(6, order=order, layout=layout)
            clip = rearrange(h, f"{FRAMES_FIRST} -> {order}")
            program = jax.jit(conv.apply).lower(params, clip).compile()
            got = rearrange(program(params, clip), f"{order} -> {FRAMES_FIRST}")
            np.testing.assert_allclose(got, want, atol=1e-5)
            assert "collective-permute" in program.as_text(), order
    print("cut frames ok")
"""


def test_a_temporal_convolution_reads_its_neighbours_frames_in_any_order():
    assert "cut frames ok" in printed_on(4, CUT_FRAMES)


def test_a_stride_that_does_not_divide_the_rows_of_a_device_is_that_of_the_whole():
    assert "sharded convolutions ok" in printed_on(4, SHARDED)
