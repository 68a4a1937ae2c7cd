"""Whether a TPU gathers parameters while it multiplies."""

import os

import pytest
from fake_devices import printed_on

from imagen_video.profiling.aot import environment

pytest.importorskip("libtpu")

# Bytes gathered on v5p:2x2x1 for a forward pass, and seconds that are waited for the network,
# with what a layout asks of the compiler and without.
CONVOLUTIONS = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec
    from imagen_video.networks.convs import SpatialConv
    from imagen_video.profiling.hlo import parse_program
    from imagen_video.profiling.schedule import program_cost
    from imagen_video.profiling.slices import Slice
    from imagen_video.sharding import axes
    from imagen_video.sharding.layout import ShardingConfig, make_layout

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices
    layout = make_layout(ShardingConfig(), devices)

    class Convolutions(nn.Module):
        layout: object = None

        @nn.compact
        def __call__(self, h):
            for _ in range(6):
                h = h + SpatialConv(1024, dtype=jnp.bfloat16, layout=self.layout)(nn.swish(h))
            return h

    h = jax.ShapeDtypeStruct((16, 8, 16, 16, 1024), jnp.bfloat16)
    boxed = jax.eval_shape(Convolutions().init, jax.random.key(0), h)
    specs = nn.get_partition_spec(boxed)
    names = jax.tree.map(tuple, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    params = nn.unbox(boxed)
    clip = NamedSharding(layout.mesh, layout.spec(axes.CLIP, h.shape))
    placed = layout.params(names, params), clip
    for options in (layout.compiler_options, None):
        program = jax.jit(
            Convolutions(layout).apply, in_shardings=placed, compiler_options=options
        )
        compiled = program.lower(params, h).compile()
        cost = program_cost(parse_program(compiled.as_text()), Slice.parse("v5p:2x2x1").chip)
        print(cost.collective_bytes["all-gather"], cost.seconds_of["waiting for network"])
"""


@pytest.mark.slow
def test_parameters_are_gathered_beside_products(monkeypatch):
    for name, value in environment().items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    (sent, waiting), (other_sent, other_waiting) = (
        line.split() for line in printed_on(1, CONVOLUTIONS).splitlines()
    )
    # Six kernels in bfloat16, three quarters of each from elsewhere.
    assert int(sent) == int(other_sent) == pytest.approx(6 * 9 * 1024**2 * 2 * 3 / 4, rel=0.01)
    # All but the first may be hidden.
    assert float(waiting) < 0.5 * float(other_waiting)
