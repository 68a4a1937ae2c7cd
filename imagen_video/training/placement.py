"""Where every leaf of the training state lies: like the parameter that it belongs to."""

import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from imagen_video.cascade.stage import Stage, init_stage_params, stage_param_axes
from imagen_video.sharding.layout import Layout
from imagen_video.training.loop import TrainConfig
from imagen_video.training.optimizer import make_optimizer
from imagen_video.training.state import TrainState, abstract_state

Path = tuple[str, ...]


def state_shardings(layout: Layout, param_names: Any, state: TrainState) -> TrainState:
    """Returns the sharding of every leaf of the state.

    A leaf of the optimiser belongs to the parameter whose path its own path ends in. It lies like
    that parameter if it has its shape; if it is a factor of Adafactor, which lacks one of the
    dimensions, it lies as the others do; else it is whole on every device.

    Args:
      layout: mesh and rules.
      param_names: logical axis names, a tree like the parameters.
      state: shapes, as `abstract_state` returns them.
    """
    params = layout.params(param_names, state.params)
    by_path = {
        _names(path): (sharding.spec, leaf.shape)
        for (path, sharding), leaf in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(state.params)
        )
    }

    def of_optimizer_leaf(path: tuple, leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            if names[start:] in by_path:
                spec, shape = by_path[names[start:]]
                entries = _follow(spec, shape, leaf.shape, is_row="v_row" in names)
                return NamedSharding(layout.mesh, entries)
        return layout.replicated

    return TrainState(
        step=layout.replicated,
        params=params,
        ema_params=params,
        opt_state=jax.tree_util.tree_map_with_path(of_optimizer_leaf, state.opt_state),
        skipped=layout.replicated,
    )


def placement(stage: Stage, config: TrainConfig, layout: Layout | None) -> dict[str, Any]:
    """Returns the arguments of `train` that spread state and batches; none without a layout.

    Args:
      stage: whose parameters are trained.
      config: of the run.
      layout: mesh and rules; None leaves all on one device.
    """
    if layout is None:
        return {}
    init_fn = functools.partial(init_stage_params, stage)
    state = abstract_state(init_fn, make_optimizer(config.optimizer, config.num_steps))
    return {
        "state_shardings": state_shardings(layout, stage_param_axes(stage), state),
        "batch_sharding": layout.batch(microbatches=config.microbatches),
    }


def _follow(
    spec: PartitionSpec, shape: tuple[int, ...], own: tuple[int, ...], *, is_row: bool
) -> PartitionSpec:
    """The spec of an array that has the parameter's shape, or lacks one dimension of it.

    Of two equal ones optax's row factor lacks the later, the other factor the earlier.
    """
    if own == shape:
        return spec
    lacked = [i for i in range(len(shape)) if own == shape[:i] + shape[i + 1 :]]
    if not lacked:
        return PartitionSpec()
    i = lacked[-1 if is_row else 0]
    entries = (*spec, *(None,) * (len(shape) - len(spec)))
    return PartitionSpec(*entries[:i], *entries[i + 1 :])


def _names(path: tuple) -> Path:
    return tuple(
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
        for entry in path
    )
