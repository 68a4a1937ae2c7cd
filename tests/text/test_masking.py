"""Corruption hits the chosen share of real tokens, and only chosen positions carry weight."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imagen_video.text.frozen_t5 import make_frozen_t5
from imagen_video.text.masking import (
    MaskedTokenModel,
    TokenCorruption,
    encoder_params,
    masked_token_loss,
)
from imagen_video.text.t5_encoder import T5Config, param_shapes

CONFIG = T5Config(vocab_size=300, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24, num_layers=2)


def batch(rows=2000, length=20):
    """Ids 3..299, </s> at a random place, padding after it."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 300, (rows, length)).astype(np.int32)
    end = rng.integers(4, length, rows)
    tokens[np.arange(rows), end] = 1
    tokens[np.arange(length)[None] > end[:, None]] = 0
    return jnp.array(tokens)


TOKENS = batch()


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_shares(rate):
    corruption = TokenCorruption(vocab_size=300, rate=rate)
    corrupted, targets, weights = map(np.asarray, corruption(jax.random.key(0), TOKENS))
    tokens = np.asarray(TOKENS)
    real = tokens > 1
    chosen = weights == 1
    n = real.sum()
    assert set(np.unique(weights)) == {0, 1}
    # Four standard deviations of a binomial share.
    assert abs(chosen.sum() / n - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    m = chosen.sum()
    masked = corrupted[chosen] == 2
    kept = corrupted[chosen] == tokens[chosen]
    kept_share = 0.1 + 0.1 / 297  # a random token may be the old one
    assert abs(masked.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / m)
    assert abs(kept.mean() - kept_share) < 4 * np.sqrt(0.1 * 0.9 / m)
    replaced = corrupted[chosen][~masked & ~kept]
    assert replaced.min() >= 3 and replaced.max() < 300
    assert abs(replaced.mean() - 151) < 4 * 297 / np.sqrt(12 * replaced.size)
    np.testing.assert_array_equal(targets, tokens)


def test_only_chosen_positions_change_and_never_padding_or_end():
    corrupted, _, weights = TokenCorruption(vocab_size=300, rate=1.0)(jax.random.key(1), TOKENS)
    special = np.asarray(TOKENS) <= 1
    np.testing.assert_array_equal(np.asarray(corrupted)[special], np.asarray(TOKENS)[special])
    np.testing.assert_array_equal(np.asarray(weights) == 0, special)
    corrupted, _, weights = TokenCorruption(vocab_size=300)(jax.random.key(1), TOKENS)
    unchosen = np.asarray(weights) == 0
    np.testing.assert_array_equal(np.asarray(corrupted)[unchosen], np.asarray(TOKENS)[unchosen])


def test_pure_function_of_the_key():
    corrupt = jax.jit(TokenCorruption(vocab_size=300))
    first, again = corrupt(jax.random.key(3), TOKENS), corrupt(jax.random.key(3), TOKENS)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != corrupt(jax.random.key(4), TOKENS).tokens).any()


def test_loss_equals_numpy_and_ignores_weightless_positions():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, (3, 5)).astype(np.int32)
    weights = (rng.random((3, 5)) < 0.5).astype(np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rows, columns = np.nonzero(weights)
    expected = -np.log(probs[rows, columns, targets[rows, columns]]).mean()

    def loss(x, w):
        return float(masked_token_loss(jnp.array(x), jnp.array(targets), jnp.array(w)))

    np.testing.assert_allclose(loss(logits, weights), expected, rtol=1e-6)
    other = np.where(weights[..., None] == 0, logits + rng.standard_normal(logits.shape), logits)
    np.testing.assert_allclose(loss(other.astype(np.float32), weights), expected, rtol=1e-6)
    assert abs(loss(logits + 0.1 * np.arange(7, dtype=np.float32), weights) - expected) > 1e-2
    assert loss(logits, np.zeros((3, 5), np.float32)) == 0


def model_params(seed=0):
    """Seeded draws in the shapes that the model declares."""
    declared = jax.eval_shape(MaskedTokenModel(CONFIG).init, jax.random.key(0), TOKENS[:2])
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.array(0.3 * rng.standard_normal(p.shape), jnp.float32),
        nn.meta.unbox(declared["params"]),
    )


def test_encoder_is_cut_out_with_t5x_names():
    params = model_params()
    cut = encoder_params(params)
    flat = traverse_util.flatten_dict(cut, sep="/")
    assert {path: value.shape for path, value in flat.items()} == param_shapes(CONFIG)
    hidden = make_frozen_t5(CONFIG, cut)(TOKENS[:2])
    logits = jax.jit(MaskedTokenModel(CONFIG).apply)({"params": params}, TOKENS[:2])
    table = np.asarray(cut["token_embedder"]["embedding"])
    np.testing.assert_allclose(logits, np.asarray(hidden) @ table.T / 4, atol=1e-5)


def test_gradients_reach_every_encoder_parameter():
    model = MaskedTokenModel(CONFIG)
    masked = TokenCorruption(vocab_size=300)(jax.random.key(0), TOKENS[:16])

    def loss(params):
        logits = model.apply({"params": params}, masked.tokens)
        return masked_token_loss(logits, masked.targets, masked.weights)

    grads = jax.jit(jax.grad(loss))(model_params())
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        assert float(jnp.abs(grad).max()) > 0, path


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"rate": 0.0}, "rate"),
        ({"mask_share": 0.95}, "mask_share"),
        ({"random_share": -0.1}, "random_share"),
        ({"mask_id": 1}, "mask_id"),
        ({"mask_id": 300}, "mask_id"),
        ({"vocab_size": 3}, "vocab_size"),
    ],
)
def test_impossible_corruptions_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        TokenCorruption(**({"vocab_size": 300} | fields))
