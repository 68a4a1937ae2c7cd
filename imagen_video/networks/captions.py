"""From one array for each caption to one for each frame, no caption leaving its device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from imagen_video.sharding.layout import Layout


def as_cached(text_emb: Float[Array, "m n d"]) -> Float32[Array, "m n d"]:
    """Returns embeddings rounded to bfloat16's 8 digits, in float32.

    All are rounded here, on the way into the network: so it reads the same whether they come from a
    cache, which holds bfloat16 already, or from an encoder that runs along, in training or in
    sampling. A cast there and back would not do: XLA may leave both out to be more exact.
    """
    return jax.lax.reduce_precision(text_emb.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)


def captions_of_frames(
    values: Array, caption_index: Int[Array, "b f"], *, layout: Layout | None = None
) -> Array:
    """Returns what each frame reads: [m ...] to [b f ...].

    A batch cut into S parts holds the captions of each part's rows in the same part of the m
    captions (`data.pipeline` lays them out so). Said as S selections side by side, no part needs
    another's; as one gather over m, every device would hold all captions. Each is a product with
    rows of one 1 and zeros, exactly the gather, which on a TPU goes frame by frame and takes twice
    the time (compiler's estimate).

    Args:
      values: one entry a caption, any trailing axes; floats are finite.
      caption_index: into them, as in `Conditioning`.
      layout: whose `batch_shards` is S; None for one part.
    """
    parts = 1 if layout is None else layout.batch_shards
    (m, *rest), (b, f) = values.shape, caption_index.shape
    if parts == 1 or m % parts or b % parts:
        return values[caption_index]
    own = caption_index.reshape(parts, b // parts, f)
    own = own - (m // parts) * jnp.arange(parts)[:, None, None]
    chosen = jax.nn.one_hot(own, m // parts, dtype=_arithmetic(values))
    taken = jnp.einsum(
        "sbfm,sm...->sbf...",
        chosen,
        values.reshape(parts, m // parts, *rest).astype(chosen.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    return taken.reshape(b, f, *rest).astype(values.dtype)


def _arithmetic(values: Array) -> jnp.dtype:
    """The dtype to multiply in: that of floats; 0 and 1 of a mask are bfloat16 as well."""
    return values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.dtype(jnp.bfloat16)
