"""One training step: gradient, update, average. It knows no network, only a loss of parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from imagen_video.array_types import KeyArray
from imagen_video.training.ema import ema_decay_at, ema_update
from imagen_video.training.state import Params, TrainState

Batch = Any
Metrics = dict[str, Any]
# Both may be given more trees of arrays, such as a teacher's parameters: never moved, not donated.
LossFn = Callable[..., tuple[Float[Array, ""], Metrics]]  # (params, batch, key, *frozen)
TrainStep = Callable[..., tuple[TrainState, Metrics]]  # (state, batch, *frozen)


def training_key(run_seed: int, step: Int[Array, ""] | int) -> KeyArray:
    """Returns the key of a step's noise, a function of (run seed, step).

    An objective folds in the global row, so that a row's noise depends on neither the batch's
    layout nor the devices.
    """
    _, noise_key = jax.random.split(jax.random.key(run_seed, impl="threefry2x32"))
    return jax.random.fold_in(noise_key, step)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    run_seed: int,
    schedule: optax.Schedule | None = None,
    microbatches: int = 1,
    compiler_options: Sequence[str] = (),
    state_shardings: TrainState | None = None,
    batch_sharding: Any = None,
    frozen_shardings: Sequence[Any] = (),
) -> TrainStep:
    """Compiles `train_step(state, batch, *frozen) -> (state, metrics)`; the old state is given up.

    A step whose loss or gradient is not finite changes nothing but the counts `step` and `skipped`,
    so that one bad batch costs one step and not the run.

    Args:
      loss_fn: (params, batch, key, *frozen) to a float32 scalar, a mean over rows, and scalars to
        report.
      optimizer: whose state `state.opt_state` is.
      ema_decay: of the average, see `ema_decay_at`.
      run_seed: of the noise, see `training_key`.
      schedule: learning rate by updates made, for the metrics only.
      microbatches: if u > 1, batches have a leading axis u, and the gradient is the mean over it,
        computed one after the other in the memory of one.
      compiler_options: of XLA, as NAME=VALUE.
      state_shardings: of the state's leaves; None leaves placement to jax.
      batch_sharding: of the batch's leaves, or one for all; None likewise.
      frozen_shardings: of each frozen tree's leaves, where the two before are given.

    Returns:
      The jitted step. Metrics are float32 scalars: those of `loss_fn`, and `loss`, `grad_norm`
      (before clipping), `skipped` (1 or 0) and, given `schedule`, `learning_rate`.
    """
    loss_and_grads = jax.value_and_grad(loss_fn, has_aux=True)

    def mean_over_microbatches(params: Params, batch: Batch, key: KeyArray, *frozen: Any):
        first = jax.tree.map(lambda x: x[0], batch)
        shapes = jax.eval_shape(loss_and_grads, params, first, key, *frozen)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total, microbatch):
            part = loss_and_grads(params, microbatch, key, *frozen)
            return jax.tree.map(jnp.add, total, part), None

        total, _ = jax.lax.scan(add, zeros, batch)
        return jax.tree.map(lambda x: x / microbatches, total)

    gradient = loss_and_grads if microbatches == 1 else mean_over_microbatches

    def train_step(state: TrainState, batch: Batch, *frozen: Any) -> tuple[TrainState, Metrics]:
        key = training_key(run_seed, state.step)
        (loss, aux), grads = gradient(state.params, batch, key, *frozen)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates_made = state.step - state.skipped

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(updates_made, decay=ema_decay)
        ema_params = ema_update(state.ema_params, params, decay=decay)

        new = (params, ema_params, opt_state)
        old = (state.params, state.ema_params, state.opt_state)
        params, ema_params, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        skipped = jnp.logical_not(finite).astype(jnp.int32)
        metrics = dict(aux, loss=loss, grad_norm=grad_norm, skipped=skipped)
        if schedule is not None:
            metrics["learning_rate"] = schedule(updates_made)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
            skipped=state.skipped + skipped,
        )
        return new_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)

    placement = {}
    if state_shardings is not None or batch_sharding is not None:
        placement = {
            "in_shardings": (state_shardings, batch_sharding, *frozen_shardings),
            "out_shardings": (state_shardings, None),
        }
    options = dict(option.split("=", 1) for option in compiler_options)
    return jax.jit(train_step, donate_argnums=0, compiler_options=options or None, **placement)
