"""The softmaxes of attention: over several groups of keys, and over the frames of a pixel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

# What rematerialisation knows the probabilities over frames by.
PROBABILITIES = "temporal_probabilities"


def joint_softmax(logits: Sequence[Float[Array, "..."]], axis_counts: Sequence[int]) -> list[Array]:
    """One softmax over several groups of keys, without concatenating them.

    Args:
      logits: float32 arrays that agree on their leading axes (queries).
      axis_counts: for each, how many of its trailing axes index keys.

    Returns:
      Probabilities in the shapes of `logits`; over all groups' keys together they sum to 1.
    """
    key_axes = [tuple(range(-count, 0)) for count in axis_counts]

    def over_keys(values: Array, count: int) -> Array:
        return values.reshape(values.shape + (1,) * count)

    peak = jnp.max(
        jnp.stack([jnp.max(group, axis=a) for group, a in zip(logits, key_axes)]), axis=0
    )
    weights = [jnp.exp(group - over_keys(peak, count)) for group, count in zip(logits, axis_counts)]
    total = sum(jnp.sum(w, axis=a) for w, a in zip(weights, key_axes))
    return [w / over_keys(total, count) for w, count in zip(weights, axis_counts)]


@jax.custom_jvp
def frame_softmax(logits: Float[Array, "b n f g *pixels"]) -> Float[Array, "b n f g *pixels"]:
    """Softmax over the frames of keys, g, computed in float32, in the dtype of `logits`.

    Its derivative is p * (d - sum(p * d)), of its result alone, so that a backward pass needs no
    logits; `remat="products"` keeps the result, small beside a clip's channels.
    """
    return jax.nn.softmax(logits.astype(jnp.float32), axis=3).astype(logits.dtype)


@frame_softmax.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    p = checkpoint_name(frame_softmax(*primals), PROBABILITIES)
    p32, d = p.astype(jnp.float32), tangents[0].astype(jnp.float32)
    return p, (p32 * (d - jnp.sum(p32 * d, axis=3, keepdims=True))).astype(p.dtype)
