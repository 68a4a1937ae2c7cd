"""What the TPU compiler makes part of a convolution in blocks whose frames are cut."""

import os

import pytest
from fake_devices import printed_on

from imagen_video.profiling.aot import environment

pytest.importorskip("libtpu")

# Seconds beside the products of one block of a v5e:2x2, eight frames a chip, whether or not the
# program's order of axes is that of a TPU's tiles.
BLOCK = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec
    from imagen_video.networks.conditioning import Context
    from imagen_video.networks.resnet import SpaceTimeBlock
    from imagen_video.profiling.hlo import parse_program
    from imagen_video.profiling.schedule import program_cost
    from imagen_video.profiling.slices import Slice
    from imagen_video.sharding.layout import Layout
    from imagen_video.sharding.mesh import MeshShape, make_mesh

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(MeshShape(data=1, fsdp=1, context=4, tensor=1), devices)
    module = SpaceTimeBlock(
        features=256, groups=32, head_dim=64, attention="none", temporal="convolution",
        max_offset=31, dtype="bfloat16", layout=Layout(mesh=mesh),
    )

    def apply(params, h, emb):
        return module.apply(params, h, Context(
            emb=emb, tokens=None, text_mask=None, caption_index=None, is_image=None
        ))

    h = jax.ShapeDtypeStruct((2, 32, 48, 80, 256), jnp.bfloat16)
    emb = jax.ShapeDtypeStruct((2, 1, 512), jnp.bfloat16)
    whole, cut = (NamedSharding(mesh, PartitionSpec(*s)) for s in ((), (None, "context")))
    init = lambda h, emb: module.init(jax.random.key(0), h, Context(
        emb=emb, tokens=None, text_mask=None, caption_index=None, is_image=None
    ))
    params = nn.unbox(jax.eval_shape(init, h, emb))
    for on_tpu in (True, False):
        Layout.on_tpu = on_tpu
        jax.clear_caches()
        program = jax.jit(apply, in_shardings=(whole, cut, whole), out_shardings=cut)
        compiled = program.lower(params, h, emb).compile()
        cost = program_cost(parse_program(compiled.as_text()), Slice.parse("v5e:2x2").chip)
        print(on_tpu, cost.seconds_of["products"], cost.seconds - cost.seconds_of["products"])
"""


@pytest.mark.slow
def test_norms_become_part_of_the_convolutions_in_the_order_of_tiles(monkeypatch):
    for name, value in environment().items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    (_, products, rest), (_, other_products, other_rest) = (
        line.split() for line in printed_on(1, BLOCK).splitlines()
    )
    assert float(rest) < 0.5 * float(other_rest)
    # What has become part of a convolution costs it next to nothing.
    assert float(products) < 1.05 * float(other_products)
