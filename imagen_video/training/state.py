"""What training carries from step to step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagen_video.array_types import KeyArray

Params = Any
InitFn = Callable[[KeyArray], Params]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """A pytree of arrays; its leaves are shapes or shardings where those stand for it.

    Attributes:
      step: int32 scalar, training steps done, skipped ones included.
      params: float32 pytree.
      ema_params: float32 pytree of the same shapes, the average that is sampled from.
      opt_state: the optimizer's own.
      skipped: int32 scalar, steps whose loss or gradient was not finite; they change `step` and
        this alone.
    """

    step: Any
    params: Params
    ema_params: Params
    opt_state: Any
    skipped: Any


def init_state(
    init_fn: InitFn,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    shardings: TrainState | None = None,
) -> TrainState:
    """Makes the state at step 0, every leaf in place on its devices.

    Args:
      init_fn: key to float32 parameters.
      optimizer: whose state is made.
      seed: of the run; parameters and training noise draw from separate halves of it.
      shardings: of each leaf, or None for the default device.

    Raises:
      ValueError: a parameter is not float32.
    """
    init_key, _ = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    params = jax.eval_shape(init_fn, init_key)
    for path, leaf in jax.tree.leaves_with_path(params):
        if leaf.dtype != jnp.float32:
            raise ValueError(f"{jax.tree_util.keystr(path)} is {leaf.dtype}, must be float32")

    def init(key: KeyArray) -> TrainState:
        params = init_fn(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # A copy of its own: a step donates both.
            ema_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            skipped=jnp.zeros((), jnp.int32),
        )

    return jax.jit(init, out_shardings=shardings)(init_key)


def abstract_state(init_fn: InitFn, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state's shapes and dtypes without computing it; any size fits any machine."""
    return jax.eval_shape(lambda: init_state(init_fn, optimizer, seed=0))
