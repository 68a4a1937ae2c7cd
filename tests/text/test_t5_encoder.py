"""The encoder against outputs of T5X and Hugging Face, and against exact arithmetic."""

import collections
import functools
import math
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imagen_video.text.frozen_t5 import make_frozen_t5, params_digest
from imagen_video.text.t5_encoder import (
    T5_XXL,
    T5Config,
    T5Encoder,
    param_shapes,
    relative_position_bucket,
)
from imagen_video.text.t5_weights import load_t5

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
SMALL = T5Config(vocab_size=40, emb_dim=16, num_heads=2, head_dim=12, mlp_dim=32, num_layers=2)


def t5x_case(suffix):
    """Tokens, mask and the encoder output that T5X computed."""
    case = np.load(FIXTURES / "t5_t5x" / "expected.npz")
    return case["tokens" + suffix], case["mask" + suffix], case["encoder_output" + suffix]


def hf_case(suffix):
    case = np.load(FIXTURES / "t5_hf" / "expected.npz")
    tokens, mask = case["input_ids" + suffix], case["attention_mask" + suffix]
    return tokens.astype(np.int32), mask, case["last_hidden_state" + suffix]


CASES = [("t5_t5x/checkpoint_0", t5x_case), ("t5_hf", hf_case)]


def random_params(config, seed=0):
    """Seeded draws for every parameter, with outputs of about unit size."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, shape in param_shapes(config).items():
        draw = rng.standard_normal(shape).astype(np.float32)
        if path.endswith("scale"):
            draw = 1 + 0.1 * draw
        elif path.endswith("kernel"):
            # T5 folds the 1/sqrt(head_dim) of attention into the query.
            draw /= np.sqrt(shape[0] * (config.head_dim if "query" in path else 1))
        params[path] = jnp.array(draw)
    return traverse_util.unflatten_dict(params, sep="/")


@pytest.mark.parametrize("checkpoint, case", CASES)
@pytest.mark.parametrize("suffix", ["", "_long"])
def test_outputs_equal_the_originals(checkpoint, case, suffix):
    encoder = load_t5(FIXTURES / checkpoint)
    tokens, mask, expected = case(suffix)
    out = np.asarray(encoder(tokens))
    assert out.dtype == np.float32
    assert np.abs(out - expected)[mask == 1].max() < 5e-6
    # Negative control: the same weights without the distances are another function.
    without = jax.tree.map(lambda p: p, encoder.params)
    without["encoder"]["relpos_bias"]["rel_embedding"] *= 0
    other = np.asarray(make_frozen_t5(encoder.config, without)(tokens))
    assert np.abs(other - expected)[mask == 1].max() > 1e-2


def test_every_layer_equals_hugging_face():
    encoder = load_t5(FIXTURES / "t5_hf")
    tokens, mask, last = hf_case("")
    case = np.load(FIXTURES / "t5_hf" / "expected.npz")
    hidden_states = functools.partial(T5Encoder(encoder.config).apply, method="hidden_states")
    states = jax.jit(hidden_states)({"params": encoder.params}, jnp.array(tokens))
    assert len(states) == encoder.config.num_layers + 2
    for state, expected in [
        (states[0], case["hidden_states_0"]),
        (states[1], case["hidden_states_1"]),
        (states[-1], case["hidden_states_2"]),
        (states[-1], last),
    ]:
        assert np.abs(np.asarray(state) - expected)[mask == 1].max() < 5e-6
    # Negative control: hidden_states_2 is normalised, the stream after the last layer is not.
    assert np.abs(np.asarray(states[2]) - case["hidden_states_2"])[mask == 1].max() > 1e-2


@pytest.mark.parametrize("checkpoint, case", CASES)
@pytest.mark.parametrize("suffix", ["", "_long"])
def test_bfloat16_stays_close_per_token(checkpoint, case, suffix):
    tokens, mask, expected = case(suffix)
    out = np.asarray(load_t5(FIXTURES / checkpoint, dtype="bfloat16")(tokens))
    assert out.dtype == np.float32
    error = np.linalg.norm(out - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert 1e-4 < error[mask == 1].max() < 2e-2


def test_padding_changes_no_real_token():
    encoder = make_frozen_t5(SMALL, random_params(SMALL))
    tokens = np.random.default_rng(0).integers(2, 40, (3, 9)).astype(np.int32)
    tokens[:, -1] = 1
    alone = np.asarray(encoder(tokens))
    padded = np.asarray(encoder(np.pad(tokens, ((0, 0), (0, 30)))))[:, :9]
    np.testing.assert_allclose(padded, alone, rtol=0, atol=5e-6)
    # Negative control: real tokens in place of the padding are read.
    longer = np.asarray(encoder(np.pad(tokens, ((0, 0), (0, 30)), constant_values=5)))[:, :9]
    assert np.abs(longer - alone).max() > 1e-2


def test_changed_token_changes_every_real_position_of_its_row_only():
    encoder = make_frozen_t5(SMALL, random_params(SMALL))
    tokens = np.random.default_rng(1).integers(2, 40, (2, 9)).astype(np.int32)
    changed = tokens.copy()
    changed[0, 4] = 2 + (changed[0, 4] - 1) % 38
    difference = np.abs(np.asarray(encoder(changed)) - np.asarray(encoder(tokens))).max(axis=-1)
    assert difference[0].min() > 1e-4
    assert difference[0, 4] > 1e-2
    np.testing.assert_array_equal(difference[1], 0)


def test_padding_alone_gives_no_nan():
    out = make_frozen_t5(SMALL, random_params(SMALL))(np.zeros((1, 4), np.int32))
    assert np.isfinite(np.asarray(out)).all()


def test_ids_out_of_the_table_are_not_silently_clipped():
    out = np.asarray(make_frozen_t5(SMALL, random_params(SMALL))(np.array([[5, 40]], np.int32)))
    assert np.isnan(out).any()


def test_buckets_of_the_published_table():
    distance = [-200, -128, -64, -16, -8, -7, -1, 0, 1, 7, 8, 12, 16, 32, 64, 127, 200]
    expected = [15, 15, 14, 10, 8, 7, 1, 0, 17, 23, 24, 25, 26, 28, 30, 31, 31]
    found = relative_position_bucket(np.array(distance), num_buckets=32, max_distance=128)
    np.testing.assert_array_equal(found, expected)


def test_buckets_equal_integer_arithmetic():
    # Bucket 8 + j begins at 8 * 16**(j/8) = 8 * 2**(j/2), thus where d**2 >= 64 * 2**j.
    distance = np.arange(1, 5000)
    exact = [d if d < 8 else 8 + max(j for j in range(8) if d * d >= 64 * 2**j) for d in distance]
    for sign, offset in ((-1, 0), (1, 16)):
        found = relative_position_bucket(sign * distance, num_buckets=32, max_distance=128)
        np.testing.assert_array_equal(found, np.array(exact) + offset)


def test_xxl_parameter_count():
    sizes = {path: math.prod(shape) for path, shape in param_shapes(T5_XXL).items()}
    assert sum(sizes.values()) == 4_762_310_656
    assert sizes["token_embedder/embedding"] == 131_596_288
    assert sum(sizes.values()) - sizes["token_embedder/embedding"] == 4_630_714_368
    layers = collections.Counter()
    for path, size in sizes.items():
        layers[re.search(r"layers_\d+", path)[0] if "/layers_" in path else "shared"] += size
    relative_positions_and_last_norm = 32 * 64 + 4096
    assert layers.pop("shared") == 131_596_288 + relative_positions_and_last_norm
    assert list(layers.values()) == [192_946_176] * 24


def test_tree_is_that_of_t5x():
    stored = np.load(FIXTURES / "t5_t5x" / "params.npz")
    encoder = {k: stored[k].shape for k in stored if not k.startswith("decoder/")}
    config = load_t5(FIXTURES / "t5_t5x" / "checkpoint_0").config
    assert param_shapes(config) == encoder


def test_every_parameter_names_its_axes():
    variables = jax.eval_shape(
        T5Encoder(SMALL).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    )
    specs = nn.get_partition_spec(variables)["params"]
    assert specs["token_embedder"]["embedding"] == jax.P("vocab", "embed")
    assert specs["encoder"]["layers_1"]["mlp"]["wo"]["kernel"] == jax.P("mlp", "embed")
    assert specs["encoder"]["layers_0"]["attention"]["query"]["kernel"] == jax.P("embed", "heads")
    for spec in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.P)):
        assert None not in spec and len(spec) > 0


def test_digest_names_values_not_storage():
    params = random_params(SMALL)
    encoder = make_frozen_t5(SMALL, params)
    halved = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert make_frozen_t5(SMALL, halved).digest == encoder.digest
    params["encoder"]["encoder_norm"]["scale"] = params["encoder"]["encoder_norm"]["scale"] * 1.01
    assert params_digest(params) != params_digest(halved)
    deeper = T5Config(
        vocab_size=40, emb_dim=16, num_heads=2, head_dim=12, mlp_dim=32, num_layers=2,
        relpos_max_distance=64,
    )  # fmt: skip
    assert make_frozen_t5(deeper, halved).digest != encoder.digest


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"num_layers": 0}, "num_layers"),
        ({"relpos_buckets": 30}, "relpos_buckets"),
        ({"relpos_max_distance": 8}, "relpos_max_distance"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_impossible_sizes_are_named(fields, named):
    sizes = {"vocab_size": 9, "emb_dim": 4, "num_heads": 1, "head_dim": 4, "mlp_dim": 4}
    with pytest.raises(ValueError, match=named):
        T5Config(**({"num_layers": 1} | sizes | fields))


def test_wrong_params_are_named():
    params = random_params(SMALL)
    params["encoder"]["layers_1"]["mlp"]["wo"]["kernel"] = jnp.zeros((32, 15))
    with pytest.raises(ValueError, match=r"layers_1/mlp/wo/kernel.*32, 15.*32, 16"):
        make_frozen_t5(SMALL, params)
    del params["encoder"]["layers_1"]["mlp"]["wo"]
    with pytest.raises(ValueError, match="layers_1/mlp/wo/kernel: missing"):
        make_frozen_t5(SMALL, params)
