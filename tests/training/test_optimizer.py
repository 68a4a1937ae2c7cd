"""The optimizers against optax's own and against numpy."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import micro_cascade
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from imagen_video.networks.unet import init_params
from imagen_video.records import from_dict, to_dict
from imagen_video.text.masking import init_masked_params
from imagen_video.text.t5_encoder import T5Config
from imagen_video.training.muon import matrix_axes
from imagen_video.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def run(optimizer, params, steps=5, scale=1.0):
    """Parameters after `steps` updates with seeded gradients."""
    state = optimizer.init(params)
    for step in range(steps):
        keys = jax.random.split(jax.random.key(step), len(params))
        grads = {n: scale * jax.random.normal(k, params[n].shape) for n, k in zip(params, keys)}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def some_params():
    # The first is large enough for Adafactor to factor its second moment.
    return {
        "kernel": jax.random.normal(jax.random.key(7), (130, 140)),
        "bias": jnp.linspace(-1.0, 1.0, 9),
    }


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedule_is_its_closed_form(schedule):
    config = OptimizerConfig(learning_rate=3e-4, warmup_steps=10, schedule=schedule)
    rate = make_schedule(config, 110)
    for updates in (0, 4, 9, 10, 11, 60, 109, 110, 500):
        progress = min(max((updates - 10) / 100, 0), 1)
        fall = {
            "constant": 1.0,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "linear": 1 - progress,
        }
        wanted = 3e-4 * min((updates + 1) / 10, 1) * fall[schedule]
        np.testing.assert_allclose(rate(updates), wanted, rtol=1e-5, atol=1e-10)


def test_cosine_is_that_of_optax_and_total_steps_overrides_the_run():
    config = OptimizerConfig(learning_rate=2e-3, warmup_steps=0, total_steps=40)
    ours, theirs = make_schedule(config, 9999), optax.cosine_decay_schedule(2e-3, 40)
    for updates in range(0, 45, 3):
        np.testing.assert_allclose(ours(updates), theirs(updates), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_adam_is_that_of_optax(clip_norm):
    config = OptimizerConfig(
        learning_rate=1e-2, warmup_steps=0, schedule="constant", b2=0.99, clip_norm=clip_norm
    )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    theirs = optax.chain(clip, optax.adam(1e-2, b1=0.9, b2=0.99, eps=1e-8))
    ours = run(make_optimizer(config, 100), some_params())
    for name, value in run(theirs, some_params()).items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6)


def test_clipping_bounds_what_a_huge_gradient_does():
    # Adafactor and Adam are all but blind to the gradient's scale until scales mix.
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant")
    free = dataclasses.replace(config, clip_norm=None)

    def moment(config):
        optimizer = make_optimizer(config, 100)
        grads = jax.tree.map(lambda p: 1e3 * jnp.ones_like(p), some_params())
        _, state = optimizer.update(grads, optimizer.init(some_params()), some_params())
        return optax.tree.norm(optax.tree.get(state, "mu"))

    np.testing.assert_allclose(moment(config), 0.1 * 1.0, rtol=1e-5)
    assert moment(free) > 1e3


def test_adafactor_is_that_of_optax():
    config = OptimizerConfig(
        name="adafactor", learning_rate=1e-2, warmup_steps=3, schedule="linear", clip_norm=None
    )
    ours = run(make_optimizer(config, 20), some_params())
    theirs = run(optax.adafactor(make_schedule(config, 20)), some_params())
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7)
    adam = run(make_optimizer(dataclasses.replace(config, name="adam"), 20), some_params())
    assert np.abs(adam["kernel"] - ours["kernel"]).max() > 1e-3


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_weight_decay_is_decoupled_and_scaled_by_the_rate(name):
    config = OptimizerConfig(
        name=name, learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.2
    )
    params = some_params()
    # Without a gradient nothing but the decay is left.
    shrunk = run(make_optimizer(config, 10), params, steps=3, scale=0.0)
    for key in params:
        np.testing.assert_allclose(shrunk[key], (1 - 0.02) ** 3 * params[key], rtol=1e-5)


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"b1": 1.0}, "b1"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_impossible_values_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        OptimizerConfig(**fields)


def test_a_warm_up_longer_than_the_schedule_is_refused():
    with pytest.raises(ValueError, match="warmup_steps is 10000, must be less than the 50 steps"):
        make_optimizer(OptimizerConfig(), 50)
    make_optimizer(OptimizerConfig(schedule="constant"), 50)


def test_config_survives_json():
    config = OptimizerConfig(name="adafactor", clip_norm=None, total_steps=7, warmup_steps=2)
    assert from_dict(OptimizerConfig, json.loads(json.dumps(to_dict(config)))) == config
    with pytest.raises(ValueError, match="schedule"):
        from_dict(OptimizerConfig, {"schedule": "cosin"})


def polar(matrix):
    """The nearest orthogonal matrix, by numpy's singular values."""
    u, _, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u @ v


def test_muon_steps_along_the_orthogonal_factor_of_every_kernel():
    params = {
        "down_0_0": {"conv": {"kernel": jnp.ones((3, 3, 8, 16))}},
        "down_0_all": {"spatial": {"query": {"kernel": jnp.ones((2, 24, 4, 8))}}},
        "out": {"conv": {"kernel": jnp.ones((3, 3, 8, 4)), "bias": jnp.ones(4)}},
    }
    leaves, tree = jax.tree.flatten(params)
    grads = [jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    grads = jax.tree.unflatten(tree, grads)
    config = OptimizerConfig(
        name="muon", learning_rate=0.1, warmup_steps=0, schedule="constant", clip_norm=None
    )
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)

    def check(update, gradient):
        wanted = -0.1 * 0.2 * math.sqrt(max(gradient.shape)) * polar(gradient)
        update = np.asarray(update, np.float64).reshape(gradient.shape)
        cosine = np.sum(update * wanted) / np.linalg.norm(update) / np.linalg.norm(wanted)
        # Muon's five iterations bring the singular values near 1, not to it.
        assert cosine > 0.97
        assert 0.7 < np.linalg.norm(update) / np.linalg.norm(wanted) < 1.2

    conv = grads["down_0_0"]["conv"]["kernel"].reshape(72, 16)
    check(updates["down_0_0"]["conv"]["kernel"], conv)
    for layer in range(2):  # each layer of scanned blocks is a matrix of its own
        query = grads["down_0_all"]["spatial"]["query"]["kernel"][layer].reshape(24, 32)
        check(updates["down_0_all"]["spatial"]["query"]["kernel"][layer], query)
    # The last layer and what is no matrix: Adam with Nesterov's mean.
    adam = optax.adam(0.1, b1=config.b1, b2=config.b2, eps=config.eps, nesterov=True)
    wanted, _ = adam.update(grads["out"], adam.init(params["out"]))
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(updates["out"]["conv"][name], wanted["conv"][name], rtol=1e-4)


def test_muon_knows_every_kernel_of_a_unet():
    config = dataclasses.replace(
        micro_cascade.UNET,
        channels=(8, 16),
        strides=(1, 2),
        num_blocks=(3, 3),
        attention=("cross", "self"),
        head_dim=4,
    )
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    by_path = jax.tree_util.tree_leaves_with_path(params)
    axes = jax.tree.leaves(
        matrix_axes(params), is_leaf=lambda leaf: leaf is None or isinstance(leaf, tuple)
    )
    assert len(axes) == len(by_path)
    for (path, leaf), leaf_axes in zip(by_path, axes):
        names = [entry.key for entry in path]
        is_matrix = names[-1] == "kernel" and names[0] != "out"
        assert (leaf_axes is not None) == is_matrix, names
        if is_matrix:
            both = (*leaf_axes.reduction_axis, *leaf_axes.output_axis)
            stacked = names[0].endswith(("_all", "_rest"))
            assert both == tuple(range(stacked, len(leaf.shape))), names
            columns = math.prod(leaf.shape[axis] for axis in leaf_axes.output_axis)
            # Widths of this network; head_dim alone would be 4.
            assert columns in (8, 16, 32), names


def test_muon_takes_the_projections_of_t5_whole():
    config = T5Config(vocab_size=9, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=8, num_layers=1)
    params = jax.eval_shape(lambda: init_masked_params(config, jax.random.key(0)))
    found = jax.tree.leaves(
        matrix_axes(params), is_leaf=lambda leaf: isinstance(leaf, MuonDimensionNumbers)
    )
    # Four projections of the attention and three of the gated layer.
    assert found == [MuonDimensionNumbers(reduction_axis=(0,), output_axis=(1,))] * 7
