"""Starting a run from what another one has learned."""

import dataclasses

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from imagen_video.cascade.weights import load_stage
from imagen_video.sharding.processes import placed
from imagen_video.training.checkpoints import check_fit, restore_params
from imagen_video.training.state import Params, TrainState


def params_of(source: str, *, like: Params) -> Params:
    """Returns the averaged parameters of a run's newest checkpoint, or of an exported file.

    Args:
      source: work directory of a run of the same network, or a .safetensors file of one.
      like: parameters of the shapes and dtypes wanted, where they are wanted.

    Raises:
      ValueError: there is neither, or the first parameter that differs.
    """
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    if source.endswith(".safetensors"):
        params = load_stage(source, param_dtype="float32").params
        check_fit(params, like, where=source)
        params = placed(params, jax.tree.map(lambda x: x.sharding, like))
    else:
        params, _ = restore_params(str(epath.Path(source) / "checkpoints"), like=like)
    logging.info("starting from the parameters of %s", source)
    return params


def with_params(state: TrainState, params: Params) -> TrainState:
    """Returns the state with copies of `params`, one of its own for the average: a step donates."""
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
    copies = [jax.tree.map(jnp.copy, params) for _ in range(2)]
    return dataclasses.replace(state, params=copies[0], ema_params=copies[1])
