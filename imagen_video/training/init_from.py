"""Starting a run from what another one has learned."""

import dataclasses

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from imagen_video.cascade.weights import load_stage
from imagen_video.training.checkpoints import check_fit, restore_params
from imagen_video.training.state import TrainState


def from_another_run(state: TrainState, source: str) -> TrainState:
    """Returns the state with the averaged parameters of a run's newest checkpoint, or of a file.

    Args:
      state: at step 0; its parameters say shapes, dtypes and shardings.
      source: work directory of a run of the same network, or a .safetensors file of one.

    Raises:
      ValueError: there is neither, or the first parameter that differs.
    """
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.params
    )
    if source.endswith(".safetensors"):
        # Exported in fewer bits and cast to what sampling takes: trained on in float32.
        params = jax.tree.map(lambda p: p.astype(jnp.float32), load_stage(source).params)
        check_fit(params, like, where=source)
        params = jax.tree.map(lambda p, x: jax.device_put(p, x.sharding), params, like)
    else:
        params, _ = restore_params(str(epath.Path(source) / "checkpoints"), like=like)
    logging.info("starting from the parameters of %s", source)
    # A copy of its own: a step donates both.
    return dataclasses.replace(state, params=params, ema_params=jax.tree.map(jnp.copy, params))
