"""The softmax of attention, which a backward pass can find instead of computing it again."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

# What rematerialisation knows the probabilities by.
PROBABILITIES = "attention_probabilities"


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(logits: Sequence[Array], axis: int) -> list[Array]:
    """One softmax over the keys of all parts, along `axis`, computed in float32, in their dtypes.

    Its derivative is p * (d - sum(p * d)), of its result alone, so that a backward pass needs no
    logits; `remat="products"` keeps the result.
    """
    parts = [part.astype(jnp.float32) for part in logits]
    highest = reduce(jnp.maximum, (part.max(axis, keepdims=True) for part in parts))
    e = [jnp.exp(part - highest) for part in parts]
    total = sum(part.sum(axis, keepdims=True) for part in e)
    return [(part / total).astype(given.dtype) for part, given in zip(e, logits)]


@softmax.defjvp
def _derivative(axis: int, primals: tuple, tangents: tuple) -> tuple[list[Array], list[Array]]:
    p = [checkpoint_name(part, PROBABILITIES) for part in softmax(*primals, axis)]
    p32, d = ([part.astype(jnp.float32) for part in parts] for parts in (p, tangents[0]))
    mean = sum(jnp.sum(part * d_part, axis, keepdims=True) for part, d_part in zip(p32, d))
    return p, [
        (part * (d_part - mean)).astype(given.dtype) for part, d_part, given in zip(p32, d, p)
    ]
