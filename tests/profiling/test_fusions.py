"""What the TPU compiler makes part of a convolution in a block."""

import os

import pytest
from fake_devices import printed_on

from imagen_video.profiling.aot import environment

pytest.importorskip("libtpu")

# Seconds of the products of one block on v5e:2x2, and of what is beside them, whether or not the
# program's order of axes is that of a TPU's tiles.
BLOCK = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from einops import rearrange
    from jax.experimental import topologies
    from jax.sharding import NamedSharding
    from imagen_video.networks.conditioning import Context
    from imagen_video.networks.resnet import SpaceTimeBlock
    from imagen_video.networks.tiles import FRAMES_FIRST, clip_order
    from imagen_video.profiling.hlo import parse_program
    from imagen_video.profiling.schedule import program_cost
    from imagen_video.profiling.slices import Slice
    from imagen_video.sharding import axes
    from imagen_video.sharding.layout import Layout
    from imagen_video.sharding.mesh import MeshShape, make_mesh

    def block(**fields):
        return SpaceTimeBlock(
            features=256, groups=32, head_dim=64, attention="none", temporal="convolution",
            max_offset=31, dtype="bfloat16", **fields,
        )

    def evaluation(params, h, emb):
        order = clip_order(layout, h)
        module = block(order=order, layout=layout)
        h = module.apply(params, rearrange(h, f"{FRAMES_FIRST} -> {order}"), context(emb))
        return rearrange(h, f"{order} -> {FRAMES_FIRST}")

    def gradients(params, h, emb):
        h, vjp = jax.vjp(evaluation, params, h, emb)
        return h, vjp(h)

    def context(emb):
        return Context(emb=emb, tokens=None, text_mask=None, caption_index=None, is_image=None)

    def init(h, emb):
        return block().init(jax.random.key(0), h, context(emb))

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(MeshShape(MESH), devices)
    layout = Layout(mesh=mesh)
    h, emb = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (SHAPE, (SHAPE[0], 1, 512)))
    params = nn.unbox(jax.eval_shape(init, h, emb))
    whole = layout.replicated
    cut = NamedSharding(mesh, layout.spec(axes.CLIP, h.shape))
    for on_tpu in (True, False):
        Layout.on_tpu = on_tpu
        jax.clear_caches()
        program = jax.jit(PROGRAM, in_shardings=(whole, cut, whole))
        compiled = program.lower(params, h, emb).compile()
        cost = program_cost(parse_program(compiled.as_text()), Slice.parse("v5e:2x2").chip)
        print(on_tpu, cost.seconds_of["products"], cost.seconds - cost.seconds_of["products"])
"""

# Eight frames a chip, or eight clips.
SAMPLING = ("evaluation", "data=1, fsdp=1, context=4, tensor=1", "(2, 32, 48, 80, 256)")
TRAINING = ("gradients", "data=4, fsdp=1, context=1, tensor=1", "(32, 16, 24, 40, 256)")


@pytest.mark.slow
@pytest.mark.parametrize("case", [SAMPLING, TRAINING], ids=["sampling", "training"])
def test_norms_become_part_of_the_convolutions_in_the_order_of_tiles(case, monkeypatch):
    for name, value in environment().items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    program = BLOCK
    for name, value in zip(("PROGRAM", "MESH", "SHAPE"), case, strict=True):
        program = program.replace(name, value)
    (_, products, rest), (_, other_products, other_rest) = (
        line.split() for line in printed_on(1, program).splitlines()
    )
    assert float(rest) < 0.5 * float(other_rest)
    # What has become part of a convolution costs it next to nothing.
    assert float(products) < 1.05 * float(other_products)
