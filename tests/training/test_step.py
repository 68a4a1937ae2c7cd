"""One step against what it is by hand."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_video.training.state import abstract_state, init_state
from imagen_video.training.step import make_train_step, training_key


def init_fn(key):
    return {"w": jax.random.normal(key, (3,))}


def regression(params, batch, key):
    error = batch["x"] @ params["w"] - batch["y"]
    return jnp.mean(error**2), {"bias": jnp.mean(error)}


def batch_of(seed, rows=8):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, 3)), rng.normal(size=rows)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def make(optimizer, loss_fn=regression, **options):
    return make_train_step(loss_fn, optimizer, **{"ema_decay": 0.9, "run_seed": 1} | options)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_step_is_the_formula():
    optimizer = optax.sgd(0.05)
    state = init_state(init_fn, optimizer, seed=0)
    w, batch = np.asarray(state.params["w"], np.float64), batch_of(0)
    error = batch["x"] @ w - batch["y"]
    grad = 2 * batch["x"].T @ error / 8
    new, metrics = make(optimizer, schedule=lambda n: 0.05)(state, batch)
    np.testing.assert_allclose(new.params["w"], w - 0.05 * grad, rtol=1e-5)
    # The first decay of the ramp is 0.1.
    np.testing.assert_allclose(new.ema_params["w"], w - 0.9 * 0.05 * grad, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(grad), rtol=1e-5)
    np.testing.assert_allclose(metrics["bias"], error.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["learning_rate"], 0.05, rtol=1e-6)
    assert metrics["skipped"] == 0 and int(new.step) == 1
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())


def test_the_compiler_is_told_its_options():
    state = init_state(init_fn, optax.sgd(0.1), seed=0)
    step = make(optax.sgd(0.1), compiler_options=["xla_dump_hlo_as_text=True"])
    assert int(step(state, batch_of(0))[0].step) == 1
    for option in ("xla_no_such_option=1", "xla_dump_hlo_as_text=2"):
        with pytest.raises(jax.errors.JaxRuntimeError, match=option.split("=")[0]):
            make(optax.sgd(0.1), compiler_options=[option]).lower(state, batch_of(0)).compile()


def test_noise_is_a_function_of_seed_and_step_alone():
    def noisy(params, batch, key):
        return jnp.sum(params["w"]) * 0 + jax.random.normal(key), {}

    step = make(optax.sgd(0.0), noisy)
    state, drawn = init_state(init_fn, optax.sgd(0.0), seed=1), []
    for n in range(3):
        state, metrics = step(state, batch_of(n))
        drawn.append(float(metrics["loss"]))
    wanted = [float(jax.random.normal(training_key(1, n))) for n in range(3)]
    np.testing.assert_array_equal(drawn, wanted)
    assert len(set(drawn)) == 3
    assert float(jax.random.normal(training_key(2, 0))) not in drawn


def test_noise_and_parameters_do_not_share_a_key():
    seen = []
    init_state(lambda key: seen.append(key) or {"w": jnp.zeros(1)}, optax.sgd(0.1), seed=5)
    init_key, _ = jax.random.split(jax.random.key(5, impl="threefry2x32"))
    assert seen
    for step in range(100):
        assert (jax.random.key_data(training_key(5, step)) != jax.random.key_data(init_key)).any()


def test_microbatches_give_the_gradient_of_the_whole():
    optimizer, batch = optax.adam(1e-2), batch_of(3, rows=12)
    cut = {name: x.reshape(3, 4, *x.shape[1:]) for name, x in batch.items()}
    whole, by_whole = make(optimizer)(init_state(init_fn, optimizer, seed=0), batch)
    parts, by_parts = make(optimizer, microbatches=3)(init_state(init_fn, optimizer, seed=0), cut)
    np.testing.assert_allclose(whole.params["w"], parts.params["w"], rtol=1e-5)
    for name in by_whole:
        np.testing.assert_allclose(by_whole[name], by_parts[name], rtol=1e-4, atol=1e-6)


def test_frozen_trees_reach_the_loss_and_stay():
    def towards(params, batch, key, target, scale):
        return scale["s"] * jnp.sum((params["w"] - target["w"]) ** 2), {}

    for microbatches in (1, 2):
        optimizer = optax.sgd(0.25)
        state = init_state(init_fn, optimizer, seed=0)
        w, target = np.asarray(state.params["w"]), {"w": jnp.asarray([1.0, 2.0, 3.0])}
        step = make(optimizer, towards, microbatches=microbatches)
        batch = {"x": np.zeros((microbatches, 1), np.float32)}
        for _ in range(2):
            state, _ = step(state, batch, target, {"s": jnp.float32(1.0)})
            w = (w + np.asarray(target["w"])) / 2
            np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)


def infinite_gradient(params, batch, key):
    # Finite loss; the root's slope at 0 is infinite where the batch asks for it.
    return jnp.mean(jnp.sqrt(batch["x"] ** 2 * jnp.sum(params["w"] ** 2) * batch["zero"])), {}


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counts(kind):
    optimizer = optax.adam(1e-2)
    if kind == "loss":
        loss_fn, good, bad = regression, batch_of(0), batch_of(0)
        bad["y"][2] = np.nan
    else:
        loss_fn, one = infinite_gradient, np.ones(4, np.float32)
        good, bad = {"x": one, "zero": np.float32(1)}, {"x": one, "zero": np.float32(0)}
    step = make(optimizer, loss_fn, schedule=lambda n: n.astype(jnp.float32))
    disturbed, _ = step(init_state(init_fn, optimizer, seed=0), good)
    before = bits((disturbed.params, disturbed.ema_params, disturbed.opt_state))
    disturbed, metrics = step(disturbed, bad)
    assert bits((disturbed.params, disturbed.ema_params, disturbed.opt_state)) == before
    assert metrics["skipped"] == 1 and int(disturbed.skipped) == 1 and int(disturbed.step) == 2
    assert np.isfinite(metrics["loss"]) == (kind == "gradient")
    # It goes on as if the bad batch had never come.
    disturbed, metrics = step(disturbed, good)
    undisturbed, _ = step(init_state(init_fn, optimizer, seed=0), good)
    undisturbed, _ = step(undisturbed, good)
    assert bits((disturbed.params, disturbed.ema_params, disturbed.opt_state)) == bits(
        (undisturbed.params, undisturbed.ema_params, undisturbed.opt_state)
    )
    assert metrics["learning_rate"] == 1  # one update was made before


def test_the_old_state_is_given_up():
    optimizer = optax.adam(1e-2)
    state = init_state(init_fn, optimizer, seed=0)
    make(optimizer)(state, batch_of(0))
    assert state.params["w"].is_deleted() and state.ema_params["w"].is_deleted()


def steps_on(mesh):
    """Parameters and average after three steps, with everything that divides by 4 split."""
    optimizer = optax.adam(1e-2)
    shardings = batch_sharding = None

    def init(key):
        return {"w": jax.random.normal(key, (3,)), "v": jnp.arange(8.0)}

    def loss_fn(params, batch, key):
        loss, metrics = regression(params, batch, key)
        rows = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row)))(batch["row"])
        return loss + jnp.mean(params["v"] ** 2) + jnp.mean(rows) * params["v"][0], metrics

    if mesh is not None:
        P, N = jax.sharding.PartitionSpec, jax.sharding.NamedSharding
        like = abstract_state(init, optimizer)
        shardings = jax.tree.map(lambda x: N(mesh, P("data") if x.shape == (8,) else P()), like)
        batch_sharding = N(mesh, P("data"))
    step = make(optimizer, loss_fn, state_shardings=shardings, batch_sharding=batch_sharding)
    state = init_state(init, optimizer, seed=0, shardings=shardings)
    for n in range(3):
        batch = batch_of(n) | {"row": np.arange(8, dtype=np.int32)}
        state, metrics = step(state, jax.device_put(batch, batch_sharding))
    return state, metrics


def test_a_split_state_takes_the_same_steps():
    # Four devices have to be asked for before jax starts.
    root = Path(__file__).parents[2]
    flags = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run([sys.executable, __file__], env=flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    assert jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    (one, m_one), (four, m_four) = steps_on(None), steps_on(mesh)
    assert len(four.params["v"].sharding.device_set) == 4
    assert four.params["v"].addressable_shards[0].data.shape == (2,)
    for a, b in zip(jax.tree.leaves((one, m_one)), jax.tree.leaves((four, m_four)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
