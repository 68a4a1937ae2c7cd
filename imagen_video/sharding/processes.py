"""The processes of one job: what they agree on, and whole arrays to and from their devices.

Every function here but `is_first` must be called by all processes, in the same order. Alone, a
process does what one would do without them.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagen_video.files import held


def is_first() -> bool:
    """Whether this process owns the files of the job and speaks for it."""
    return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
    """Returns to all processes what `make` returned to the first; the others do not call it.

    Args:
      make: returns JSON values.

    Raises:
      ValueError: on all processes but the first, with the message of what `make` raised; on the
        first one it is that error itself, of any type.
    """
    if jax.process_count() == 1:
        return make()
    answer, failure = {}, None
    if is_first():
        try:
            answer = {"value": make()}
        except Exception as error:  # Any: the others wait for an answer.
            told = str(error) if isinstance(error, (ValueError, OSError)) else repr(error)
            answer, failure = {"error": told}, error
    answer = json.loads(_bytes_of_first(json.dumps(answer).encode()))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


@contextlib.contextmanager
def held_by_first(folder: str | os.PathLike) -> Iterator[None]:
    """`imagen_video.files.held` by the first process, whose error all raise.

    Raises:
      ValueError: another run is at work in the folder, or it is a file.
    """
    with contextlib.ExitStack() as holding:

        def hold() -> None:
            holding.enter_context(held(folder))

        from_first(hold)
        yield


def arrays_from_first(make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """As `from_first`, of arrays by name; among several processes all get numpy arrays."""
    if jax.process_count() == 1:
        return make()
    arrays: dict[str, np.ndarray] = {}

    def described():
        made = make()
        if made is None:
            return None
        arrays.update({name: np.asarray(value) for name, value in made.items()})
        return {name: [value.shape, value.dtype.name] for name, value in arrays.items()}

    description = from_first(described)
    if description is None:
        return None
    if not is_first():
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in description.items()}
    # The broadcast is a sum, which makes integers of booleans.
    return {
        name: np.asarray(multihost_utils.broadcast_one_to_all(array)).astype(array.dtype)
        for name, array in arrays.items()
    }


def placed(values: Any, shardings: Any) -> Any:
    """Returns arrays on devices, where each process places the parts that are its own.

    Args:
      values: a tree of arrays, equal on all processes, or arrays that lie on all their devices
        already.
      shardings: the same tree of shardings.
    """
    if jax.process_count() == 1:
        return jax.device_put(values, shardings)

    def place(value, sharding):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = place(jax.random.key_data(value), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            return jax.device_put(value, sharding)
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, values, shardings)


def whole(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Returns an array whose every element this process can read."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


def _bytes_of_first(content: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = np.zeros(size, np.uint8)
    if is_first():
        buffer[:] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()
