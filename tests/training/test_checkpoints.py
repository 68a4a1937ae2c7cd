"""What is saved comes back bit for bit, and what does not fit is named."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from imagen_video.training.checkpoints import Checkpoints, restore_params
from imagen_video.training.state import TrainState, abstract_state, init_state


def init_fn(key, width=5):
    keys = jax.random.split(key)
    return {
        "blocks": {"kernel": jax.random.normal(keys[0], (3, width))},
        "out": {"bias": jax.random.normal(keys[1], (width,))},
    }


def some_state(step, optimizer):
    state = init_state(init_fn, optimizer, seed=step)
    return TrainState(
        step=jnp.int32(step),
        params=state.params,
        ema_params=jax.tree.map(lambda x: x / 3, state.params),
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
        skipped=jnp.int32(2),
    )


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3)])
def test_everything_comes_back(tmp_path, optimizer):
    state, data = some_state(7, optimizer), {"next_batch": 12, "seed": 0}
    with Checkpoints(str(tmp_path / "checkpoints")) as checkpoints:
        assert checkpoints.latest_step is None
        checkpoints.save(state, data=data, config={"stage": "base"}, reports=[{"loss": 0.1}])
    with Checkpoints(str(tmp_path / "checkpoints")) as checkpoints:
        assert checkpoints.latest_step == 7
        again, saved = checkpoints.restore(abstract_state(init_fn, optimizer))
    assert_same_bits(again, state)
    assert saved["data"] == data and saved["config"] == {"stage": "base"}
    assert saved["reports"] == [{"loss": 0.1}]


def test_anothers_checkpoint_is_refused_by_name(tmp_path):
    folder = tmp_path / "checkpoints"
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"checkpoints/3: no checkpoint of this library \(ema_par"):
        restore_params(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no checkpoint there that is whole"):
        restore_params(str(tmp_path / "empty"))


def test_the_last_and_every_nth_are_kept(tmp_path):
    state = some_state(1, optax.sgd(1.0))

    def state_at(step):
        return dataclasses.replace(state, step=jnp.int32(step))

    with Checkpoints(str(tmp_path), keep=2, keep_every=4) as checkpoints:
        for step in range(2, 8):
            checkpoints.save(state_at(step), data=None, config=None)
    assert sorted(int(name) for name in os.listdir(tmp_path)) == [4, 6, 7]


def test_a_state_may_be_given_up_once_save_returns(tmp_path):
    double = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)
    optimizer = optax.sgd(1.0)
    with Checkpoints(str(tmp_path), keep=9) as checkpoints:
        state = some_state(1, optimizer)
        wanted = np.asarray(state.params["out"]["bias"]).copy()
        for _ in range(4):
            checkpoints.save(state, data=None, config=None)
            state = double(state)
    for power in range(4):
        params, _ = restore_params(str(tmp_path), ema=False, step=2**power)
        np.testing.assert_array_equal(params["out"]["bias"], wanted * 2**power)


def test_parameters_are_read_without_the_optimizer(tmp_path):
    state = some_state(3, optax.adafactor(1e-3))
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(state, data=None, config={"seed": 1})
    params, config = restore_params(str(tmp_path))
    assert config == {"seed": 1}
    assert isinstance(params["out"]["bias"], np.ndarray)
    assert_same_bits(params, state.ema_params)
    like = jax.eval_shape(init_fn, jax.random.key(0))
    placed, _ = restore_params(str(tmp_path), ema=False, like=like)
    assert_same_bits(placed, state.params)
    assert isinstance(placed["out"]["bias"], jax.Array)


def test_what_does_not_fit_is_named_in_one_line(tmp_path):
    adam = optax.adam(1e-3)
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(some_state(3, adam), data=None, config=None)
    wide = abstract_state(lambda key: init_fn(key, width=6), adam)
    more = abstract_state(lambda key: init_fn(key) | {"extra": jnp.zeros(2)}, adam)
    other = abstract_state(init_fn, optax.sgd(1.0, momentum=0.9))
    cases = (
        (wide, r"params/blocks/kernel is float32\[3, 5\] in the checkpoint but float32\[3, 6\] in"),
        (more, r"params/extra is missing in the checkpoint but float32\[2\] in"),
        (other, "optimizer/opt_state/0/count is int32.* in the checkpoint but missing in"),
    )
    with Checkpoints(str(tmp_path)) as checkpoints:
        for like, message in cases:
            with pytest.raises(ValueError, match=message) as caught:
                checkpoints.restore(like)
            assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="ema_params/blocks/kernel"):
        restore_params(str(tmp_path), like=wide.params)


def test_a_missing_checkpoint_is_said(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        restore_params(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(some_state(3, optax.sgd(1.0)), data=None, config=None)
    with pytest.raises(ValueError, match=r"no checkpoint of step 4, there are \[3\]"):
        restore_params(str(tmp_path), step=4)


def test_what_a_kill_left_half_written_is_cleared_and_never_read(tmp_path):
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(some_state(3, optax.sgd(1.0)), data=None, config=None)
    half = tmp_path / "4.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"cut")
    params, _ = restore_params(str(tmp_path))
    assert_same_bits(params, some_state(3, optax.sgd(1.0)).ema_params)
    with Checkpoints(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step == 3
        checkpoints.save(some_state(5, optax.sgd(1.0)), data=None, config=None)
    assert sorted(os.listdir(tmp_path)) == ["3", "5"]
