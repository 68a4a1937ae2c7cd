"""Checkpoints of a run: the state, the place in the data and the config, through Orbax.

The only file that knows Orbax. A checkpoint is a folder named after its step with the parts
`params`, `ema_params`, `optimizer` and `run` (JSON); it appears under that name only when whole.
"""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from imagen_video.training.state import Params, TrainState

FORMAT_VERSION = 1


class Checkpoints:
    """The checkpoints in one folder, local or in a bucket (`gs://`)."""

    def __init__(self, directory: str, *, keep: int = 3, keep_every: int | None = None):
        """Opens the folder, making it if there is none.

        What a kill left half-written is never read, and is gone after the next save.

        Args:
          directory: the folder.
          keep: how many of the last checkpoints stay.
          keep_every: checkpoints at multiples of this many steps stay as well.
        """
        self._directory = _absolute(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True
        )
        self._manager = _open(self._directory, options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, data: Any, config: Any, reports: Any = None) -> None:
        """Saves under the state's step. Files are written while training goes on.

        Args:
          state: may be donated as soon as this returns.
          data: where the data stands, JSON values.
          config: what the run was started with, JSON values.
          reports: what is still to be reported, JSON values.
        """
        run = {"format_version": FORMAT_VERSION, "data": data, "config": config}
        run["reports"] = reports
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                ema_params=ocp.args.StandardSave(state.ema_params),
                optimizer=ocp.args.StandardSave(_optimizer_part(state)),
                run=ocp.args.JsonSave(run),
            ),
        )

    def restore(
        self, like: TrainState, *, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Reads a checkpoint back.

        Args:
          like: shapes and dtypes of the state, `jax.ShapeDtypeStruct`s; a leaf with a sharding is
            placed so, one without on the default device.
          step: which checkpoint; None means the newest.

        Returns:
          The state, and what was saved with it: "data", "config" and, but for checkpoints of
          earlier versions, "reports".

        Raises:
          ValueError: no such checkpoint, or the first parameter that differs from `like`.
        """
        step = _checked_step(self._manager, self._directory, step)
        parts = {
            "params": like.params,
            "ema_params": like.ema_params,
            "optimizer": _optimizer_part(like),
        }
        parts = {name: jax.tree.map(_placed, part) for name, part in parts.items()}
        for name, part in parts.items():
            where = f"{self._directory / str(step)}: {name}"
            check_fit(_stored(self._manager, self._directory, step, name), part, where=where)
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                run=ocp.args.JsonRestore(),
                **{name: ocp.args.StandardRestore(part) for name, part in parts.items()},
            ),
        )
        state = TrainState(
            params=read["params"], ema_params=read["ema_params"], **read["optimizer"]
        )
        return state, read["run"]

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def restore_params(
    directory: str, *, ema: bool = True, step: int | None = None, like: Params | None = None
) -> tuple[Params, Any]:
    """Reads the parameters of a checkpoint, without the optimizer and without knowing it.

    Args:
      directory: the folder that `Checkpoints` wrote.
      ema: the average, which is what samples are drawn with; False reads the last parameters.
      step: which checkpoint; None means the newest.
      like: shapes, dtypes and shardings to read them as; None returns the stored tree of nested
        dicts as numpy arrays.

    Returns:
      The parameters, and the config the run was started with.

    Raises:
      ValueError: no such checkpoint, or the first parameter that differs from `like`.
    """
    path, name = _absolute(directory), "ema_params" if ema else "params"
    if not path.is_dir():
        raise ValueError(f"{path}: no checkpoint there")
    manager = _open(path, ocp.CheckpointManagerOptions(create=False))
    try:
        step = _checked_step(manager, path, step)
        stored = _stored(manager, path, step, name)
        if like is None:
            # Numpy leaves ask for numpy arrays back; their memory is never touched.
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
        else:
            like = jax.tree.map(_placed, like)
            check_fit(stored, like, where=f"{path / str(step)}: {name}")
        parts = {name: ocp.args.StandardRestore(like), "run": ocp.args.JsonRestore()}
        read = manager.restore(step, args=ocp.args.Composite(**parts))
        return read[name], read["run"]["config"]
    finally:
        manager.close()


def restore_config(directory: str) -> Any:
    """Reads the config of the run that wrote the newest checkpoint, and nothing else of it.

    Raises:
      ValueError: there is no checkpoint.
    """
    path = _absolute(directory)
    manager = _open(path, ocp.CheckpointManagerOptions(create=False))
    try:
        step = _checked_step(manager, path, None)
        read = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))
        return read["run"]["config"]
    finally:
        manager.close()


def _open(path: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "ema_params": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "run": ocp.JsonCheckpointHandler(),
    }
    return _Manager(path, options=options, item_handlers=handlers)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """False: `StopSignal` asks jax, by a count of its own.

        jax stops a job at one more than the largest number that its processes asked with last.
        Were that a step, with which Orbax asks at every save, the count would not come to it.
        """
        return False


def _absolute(directory: str) -> epath.Path:
    """Orbax takes no relative paths; a bucket's address is absolute already."""
    path = epath.Path(directory)
    return path if "://" in directory else path.resolve()


def _optimizer_part(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _stored(manager: ocp.CheckpointManager, path: epath.Path, step: int, name: str) -> Any:
    try:
        return manager.item_metadata(step)[name].tree
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{path / str(step)}: no checkpoint of this library ({name})") from error


def _checked_step(manager: ocp.CheckpointManager, path: epath.Path, step: int | None) -> int:
    steps = manager.all_steps()
    if step is None and steps:
        return max(steps)
    if step is None:
        raise ValueError(f"{path}: no checkpoint there that is whole")
    if step not in steps:
        raise ValueError(f"{path}: no checkpoint of step {step}, there are {sorted(steps)}")
    return step


def check_fit(stored: Any, wanted: Any, *, where: str) -> None:
    """Raises a ValueError that names the first leaf whose path, shape or dtype differs."""
    there, here = _described(stored), _described(wanted)
    for path in sorted(there.keys() | here.keys()):
        if there.get(path) != here.get(path):
            raise ValueError(
                f"{where}/{path} is {there.get(path, 'missing')} in the checkpoint but"
                f" {here.get(path, 'missing')} in this config"
            )


def _described(tree: Any) -> dict[str, str]:
    """Leaves by path. Named tuples and dicts read the same, since that is how they are stored."""
    return {
        "/".join(_entry(key) for key in path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _entry(key: Any) -> str:
    for field in ("key", "name", "idx"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)
