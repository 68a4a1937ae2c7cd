"""Optimisers' states lie as their parameters do, and step as on one device."""

import pytest
from fake_devices import printed_on

PROGRAM = """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import PartitionSpec as P

    from imagen_video.sharding import axes
    from imagen_video.sharding.layout import ShardingConfig, make_layout
    from imagen_video.sharding.mesh import MeshShape
    from imagen_video.training.optimizer import OptimizerConfig, make_optimizer
    from imagen_video.training.placement import state_shardings
    from imagen_video.training.state import abstract_state, init_state

    SHAPES = {"square": (256, 256), "kernel": (3, 128, 384), "bias": (384,)}
    NAMES = {
        "square": (axes.IN, axes.OUT),
        "kernel": (axes.KERNEL, axes.IN, axes.OUT),
        "bias": (axes.OUT,),
    }
    WHERE = {"square": P("fsdp", "tensor"), "kernel": P(None, "fsdp", "tensor"), "bias": P()}

    def draw(key):
        keys = dict(zip(SHAPES, jax.random.split(key, len(SHAPES))))
        drawn = {name: jax.random.normal(keys[name], shape) for name, shape in SHAPES.items()}
        return {"layer": drawn}

    config = OptimizerConfig(name=OPTIMIZER, warmup_steps=0, schedule="constant")
    optimizer = make_optimizer(config, 10)
    layout = make_layout(ShardingConfig(mesh=MeshShape(data=1, fsdp=4, tensor=2)))
    shardings = state_shardings(layout, {"layer": NAMES}, abstract_state(draw, optimizer))

    def step(state):
        params, opt_state = state.params, state.opt_state
        for k in range(3):
            grads = jax.tree.map(lambda p: jnp.sin((k + 1) * p), params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return params, opt_state

    alone = step(init_state(draw, optimizer, seed=3))
    state = init_state(draw, optimizer, seed=3, shardings=shardings)
    out = (shardings.params, shardings.opt_state)
    program = jax.jit(step, in_shardings=(shardings,), out_shardings=out)
    shared = program(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), shared, alone)

    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shared):
        names = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        if names[-1] in SHAPES:
            factor = next((name for name in names if name in ("v_row", "v_col")), "whole")
            found.setdefault((names[-1], factor), set()).add(leaf.sharding.spec)
    for name, spec in WHERE.items():
        assert found[name, "whole"] >= {spec}, (name, found)
        assert found[name, "whole"] <= {spec, P()}, (name, found)
    if OPTIMIZER == "adafactor":
        # optax: the row factor is the mean over the larger dimension, of equal ones the later.
        assert found["square", "v_row"] == {P("fsdp")}, found
        assert found["square", "v_col"] == {P("tensor")}, found
        assert found["kernel", "v_row"] == {P(None, "fsdp")}, found
        assert found["kernel", "v_col"] == {P(None, "tensor")}, found
    print("lies as its parameters do")
"""


@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_an_optimizer_lies_as_its_parameters_do_and_steps_as_on_one_device(optimizer):
    program = PROGRAM.replace("OPTIMIZER", repr(optimizer))
    assert "lies as its parameters do" in printed_on(8, program)
