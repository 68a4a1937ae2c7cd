"""Exponential moving average of the parameters, which is what samples are drawn with."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def ema_decay_at(
    updates: Int[Array, ""] | int, *, decay: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Returns the decay of the next update: min(decay, (1 + updates) / (10 + updates)).

    The ramp is our choice: 0.1 at first, so that the random initial parameters are forgotten within
    tens of updates, and `decay` itself (0.9999 after 90,000 updates) in long runs.

    Args:
      updates: updates already made.
      decay: in [0, 1); 0 makes the average equal to the parameters.
    """
    updates = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + updates) / (10 + updates))


def ema_update(ema_params: Any, params: Any, *, decay: float | Float[Array, ""]) -> Any:
    """Returns decay * ema_params + (1 - decay) * params, for pytrees of one structure."""
    return jax.tree.map(lambda ema, p: ema + (1 - decay) * (p - ema), ema_params, params)
