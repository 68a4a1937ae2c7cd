"""The softmax of attention, which a backward pass can find instead of computing it again."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# What rematerialisation knows the probabilities by.
PROBABILITIES = "attention_probabilities"


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(logits: Float[Array, "*shape"], axis: int) -> Float[Array, "*shape"]:
    """Softmax over the keys, along `axis`, computed in float32, in the dtype of `logits`.

    Its derivative is p * (d - sum(p * d)), of its result alone, so that a backward pass needs no
    logits; `remat="products"` keeps the result.
    """
    return jax.nn.softmax(logits.astype(jnp.float32), axis=axis).astype(logits.dtype)


@softmax.defjvp
def _derivative(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    p = checkpoint_name(softmax(*primals, axis), PROBABILITIES)
    p32, d = p.astype(jnp.float32), tangents[0].astype(jnp.float32)
    return p, (p32 * (d - jnp.sum(p32 * d, axis=axis, keepdims=True))).astype(p.dtype)
