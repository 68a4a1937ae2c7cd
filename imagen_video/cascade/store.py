"""Keeps a sampling run's finished stages and half-done stage in a folder, so that it can go on.

The folder is the first process's; the others of its job are given what it reads.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_video.array_types import Video
from imagen_video.files import atomic_path
from imagen_video.sampling.sampler import SamplerState
from imagen_video.sharding import processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectoryStore:
    """A `StageStore` in one folder: STAGE.npz when a stage is done, STAGE.state.npz before.

    Arrays are float32, so going on repeats the bits of an undisturbed run. A file appears under
    its name only when whole.

    Attributes:
      root: the folder, on a disk or in a bucket, made on first use.
    """

    root: epath.PathLike

    def load_clip(self, stage: str) -> Video | None:
        """Returns the finished clips of `stage`, or None."""
        read = _read_by_first(self._path(f"{stage}.npz"), ("clip",))
        return None if read is None else jnp.asarray(read["clip"])

    def save_clip(self, stage: str, clip: Video) -> None:
        """Keeps finished clips and drops the state that led to them."""
        _written_by_first(self._path(f"{stage}.npz"), {"clip": clip})
        if processes.is_first():
            self._path(f"{stage}.state.npz").unlink(missing_ok=True)

    def load_state(self, stage: str) -> SamplerState | None:
        """Returns the sampler's last kept state in `stage`, or None."""
        read = _read_by_first(self._path(f"{stage}.state.npz"), ("z", "step"))
        if read is None:
            return None
        return SamplerState(z=jnp.asarray(read["z"]), step=jnp.asarray(read["step"]))

    def save_state(self, stage: str, state: SamplerState) -> None:
        """Keeps the sampler's state, in place of the one before."""
        state = {"z": state.z, "step": state.step}
        _written_by_first(self._path(f"{stage}.state.npz"), state)

    def clear(self) -> None:
        """Removes the folder."""
        if processes.is_first():
            self._path().rmtree(missing_ok=True)

    def _path(self, *names: str) -> epath.Path:
        return epath.Path(self.root, *names)


def _written_by_first(path: epath.Path, arrays: dict) -> None:
    arrays = {name: processes.whole(value) for name, value in arrays.items()}
    processes.from_first(lambda: _write(path, arrays))


def _write(path: epath.Path, arrays: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part, open(part, "wb") as file:
        np.savez(file, **{name: np.asarray(value) for name, value in arrays.items()})


def _read_by_first(path: epath.Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    return processes.arrays_from_first(lambda: _read(path, names))


def _read(path: epath.Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Arrays of a kept file. Raises ValueError, naming it, where it is not one of ours."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except Exception as error:  # numpy raises what zipfile, zlib and its own parser raise
        raise ValueError(f"{path}: cannot be read, delete it to start the stage anew") from error
