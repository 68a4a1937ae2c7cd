"""The encoder of T5 v1.1 (arXiv 2002.05202, arXiv 1910.10683) in Linen, named and laid out as T5X.

The parameter tree is the encoder's part of a T5X checkpoint, so that one loads without renaming:
`token_embedder/embedding`, `encoder/relpos_bias/rel_embedding`, `encoder/encoder_norm/scale`, and
in each `encoder/layers_i`: `pre_attention_layer_norm/scale`, `pre_mlp_layer_norm/scale`,
`attention/{query,key,value,out}/kernel`, `mlp/{wi_0,wi_1,wo}/kernel`.

Logical axes: VOCAB, rows of the embedding table; EMBED, the model width; HEADS, heads and the
joined heads * head_dim axis of the attention kernels (a mesh axis that divides num_heads keeps
heads whole); MLP, the hidden width; BUCKETS, relative-position buckets. Without a mesh they mean
nothing.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from imagen_video.sharding.axes import BUCKETS, EMBED, HEADS, MLP, VOCAB

NORM_EPSILON = 1e-6
MASKED_LOGIT = -1e10  # finite, so that a row of padding alone attends uniformly instead of NaN


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder.

    Attributes:
      vocab_size: rows of the embedding table, sentinels and padding rows included.
      emb_dim: width d of the embeddings the encoder returns.
      num_heads, head_dim: attention; their product need not be emb_dim.
      mlp_dim: hidden width of the gated feed-forward block.
      num_layers: blocks of attention and feed-forward.
      relpos_buckets: relative-position buckets, half of them for keys after the query.
      relpos_max_distance: in tokens; larger distances share the last bucket.
      dtype: of the matrix products' operands. Residual stream, norms and softmax are float32.

    Raises:
      ValueError: at construction, naming the field.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_layers: int
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    dtype: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "dtype" and value < 1:
                raise ValueError(f"{field.name}: {value}, must be at least 1")
        if self.relpos_buckets % 4:
            raise ValueError(f"relpos_buckets: {self.relpos_buckets}, must be a multiple of 4")
        if self.relpos_max_distance <= self.relpos_buckets // 4:
            raise ValueError(
                f"relpos_max_distance: {self.relpos_max_distance}, must exceed the "
                f"{self.relpos_buckets // 4} distances that have a bucket each"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: {self.dtype!r}, must be 'float32' or 'bfloat16'")


T5_XXL = T5Config(
    vocab_size=32128,
    emb_dim=4096,
    num_heads=64,
    head_dim=64,
    mlp_dim=10240,
    num_layers=24,
    dtype="bfloat16",
)
"""T5 v1.1 XXL, as in t5x/examples/t5/t5_1_1/xxl.gin: 4,762,310,656 encoder parameters."""


def relative_position_bucket(
    relative_position: Int[np.ndarray, "*n"], *, num_buckets: int, max_distance: int
) -> Int[np.ndarray, "*n"]:
    """Bucket of each key position minus query position: exact when near, logarithmic when far.

    Half the buckets belong to keys after the query. Of a half, the first half again holds one
    distance each; the rest grow geometrically up to max_distance and the last takes all beyond
    (arXiv 1910.10683, section 2.1; T5X `_relative_position_bucket`, bidirectional).
    """
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative_position)
    # The logarithm of a power of two may come out a rounding below its integer.
    ratio = np.log(np.maximum(distance, exact) / exact) / math.log(max_distance / exact) + 1e-9
    far = np.minimum(exact + (ratio * (half - exact)).astype(np.int64), half - 1)
    return np.where(distance < exact, distance, far) + half * (relative_position > 0)


class RMSNorm(nn.Module):
    """x / rms(x) * scale: neither mean nor bias. Computed in float32, returned in `dtype`."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), (EMBED,))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + NORM_EPSILON) * scale).astype(self.dtype)


class RelativePositionBias(nn.Module):
    """One table of a scalar per head and bucket, added to the logits of every layer."""

    config: T5Config

    @nn.compact
    def __call__(self, num_tokens: int) -> Float32[Array, "h n n"]:
        config = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = self.param(
            "rel_embedding",
            nn.with_logical_partitioning(init, (HEADS, BUCKETS)),
            (config.num_heads, config.relpos_buckets),
            jnp.float32,
        )
        position = np.arange(num_tokens)
        buckets = relative_position_bucket(
            position[None, :] - position[:, None],
            num_buckets=config.relpos_buckets,
            max_distance=config.relpos_max_distance,
        )
        return jnp.asarray(table, jnp.float32)[:, buckets]


class SelfAttention(nn.Module):
    """softmax(q k^T + bias) v. No 1/sqrt(head_dim): T5 folds it into the query's initial scale."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        bias: Float32[Array, "h n n"],
        mask: Bool[Array, "b n"],
    ) -> Float[Array, "b n d"]:
        config = self.config
        joined = config.num_heads * config.head_dim
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        query_init = nn.initializers.normal((config.emb_dim * config.head_dim) ** -0.5)

        def heads(name, init):
            projected = _dense(config, joined, (EMBED, HEADS), init, name)(x)
            return rearrange(projected, "b n (h k) -> b n h k", h=config.num_heads)

        q, k, v = heads("query", query_init), heads("key", fan_in), heads("value", fan_in)
        einsum = functools.partial(jnp.einsum, precision=_precision(config))
        logits = einsum("bqhk,bnhk->bhqn", q, k, preferred_element_type=jnp.float32) + bias
        logits = jnp.where(mask[:, None, None, :], logits, MASKED_LOGIT)
        weights = jax.nn.softmax(logits, axis=-1).astype(config.dtype)
        out = rearrange(einsum("bhqn,bnhk->bqhk", weights, v), "b n h k -> b n (h k)")
        return _dense(config, config.emb_dim, (HEADS, EMBED), fan_in, "out")(out)


class GatedGelu(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x) with the tanh form of gelu (arXiv 2002.05202)."""

    config: T5Config

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        config = self.config
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        gate = _dense(config, config.mlp_dim, (EMBED, MLP), init, "wi_0")(x)
        value = _dense(config, config.mlp_dim, (EMBED, MLP), init, "wi_1")(x)
        hidden = nn.gelu(gate, approximate=True) * value
        return _dense(config, config.emb_dim, (MLP, EMBED), init, "wo")(hidden)


class EncoderLayer(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added to the residual stream."""

    config: T5Config

    @nn.compact
    def __call__(
        self,
        x: Float32[Array, "b n d"],
        bias: Float32[Array, "h n n"],
        mask: Bool[Array, "b n"],
    ) -> Float32[Array, "b n d"]:
        config = self.config
        normed = RMSNorm(config.dtype, name="pre_attention_layer_norm")(x)
        x = x + SelfAttention(config, name="attention")(normed, bias, mask).astype(jnp.float32)
        normed = RMSNorm(config.dtype, name="pre_mlp_layer_norm")(x)
        return x + GatedGelu(config, name="mlp")(normed).astype(jnp.float32)


class EncoderStack(nn.Module):
    """All layers over embedded tokens, and the final norm."""

    config: T5Config

    @nn.compact
    def __call__(
        self, x: Float32[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> tuple[Float32[Array, "b n d"], ...]:
        """Returns the embeddings, the stream after each layer, and the final norm of the last."""
        bias = RelativePositionBias(self.config, name="relpos_bias")(x.shape[1])
        hidden = [x]
        for i in range(self.config.num_layers):
            hidden.append(EncoderLayer(self.config, name=f"layers_{i}")(hidden[-1], bias, mask))
        hidden.append(RMSNorm("float32", name="encoder_norm")(hidden[-1]))
        return tuple(hidden)


class T5Encoder(nn.Module):
    """Tokens to contextual embeddings, one per token. Token id 0 is padding, which no query reads.

    The residual stream is float32 for any `config.dtype` (our choice: it costs little memory, and
    sums over dozens of layers lose digits in bfloat16). With float32 operands the products are full
    float32 on accelerators too, so that cached embeddings mean the same everywhere.
    """

    config: T5Config

    def setup(self):
        config = self.config
        self.token_embedder = nn.Embed(
            config.vocab_size,
            config.emb_dim,
            embedding_init=nn.with_logical_partitioning(
                nn.initializers.normal(1.0), (VOCAB, EMBED)
            ),
        )
        self.encoder = EncoderStack(config)

    def __call__(self, tokens: Int32[Array, "b n"]) -> Float32[Array, "b n d"]:
        """Returns the embeddings; those at padding are meaningless, ids out of the table NaN."""
        return self.hidden_states(tokens)[-1]

    def hidden_states(self, tokens: Int32[Array, "b n"]) -> tuple[Float32[Array, "b n d"], ...]:
        """Returns num_layers + 2 states: embedded tokens, after each layer, after the norm."""
        # The table may be held in bfloat16; what is added to its rows may not.
        embedded = self.token_embedder(tokens).astype(jnp.float32)
        return self.encoder(embedded, tokens > 0)


def _dense(config: T5Config, features: int, names: tuple[str, str], init, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        precision=_precision(config),
        kernel_init=nn.with_logical_partitioning(init, names),
        name=name,
    )


def _precision(config: T5Config) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if config.dtype == "float32" else None


def param_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its slash path, such as 'encoder/encoder_norm/scale'."""
    return dict(_param_shapes(config))


def param_axes(config: T5Config) -> dict:
    """Returns the logical axis names of every parameter, a tree like that of `abstract_params`."""
    specs = nn.get_partition_spec(_abstract_boxed(config))
    return jax.tree.map(tuple, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def abstract_params(config: T5Config) -> dict:
    """Returns the shape of every parameter, float32, a tree as a T5X checkpoint has it."""
    return nn.meta.unbox(_abstract_boxed(config))


@functools.cache
def _param_shapes(config: T5Config) -> tuple[tuple[str, tuple[int, ...]], ...]:
    flat = traverse_util.flatten_dict(abstract_params(config), sep="/")
    return tuple((path, leaf.shape) for path, leaf in flat.items())


def _abstract_boxed(config: T5Config) -> dict:
    """Shapes of the parameters in boxes that carry their logical axis names."""
    init = functools.partial(T5Encoder(config).init, jax.random.key(0))
    return jax.eval_shape(init, jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]
