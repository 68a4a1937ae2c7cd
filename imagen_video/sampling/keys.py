"""Noise that belongs to a sample, whatever the batch, mesh or order it is drawn in.

Sample i with seed s owns `jax.random.key(s, impl="threefry2x32")` folded with i, then with the
stage's name, then with the purpose of the draw: "init", "low_res", or "step" and its number. Keys
are arrays [b] and every draw is vmapped over them, so no sample's noise depends on its neighbours.
"""

import operator
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

IMPLEMENTATION = "threefry2x32"


def sample_keys(*, seeds: Sequence[int], indices: Sequence[int]) -> Key[Array, " b"]:
    """Returns the key of each sample: its seed's, folded with its index.

    Args:
      seeds: one seed per sample, each in [0, 2^31).
      indices: one index per sample, in [0, 2^31); a sample's place in the whole request, not in
        the batch.

    Raises:
      ValueError: a seed or index is no whole number or out of range, or their numbers differ.
    """
    if len(seeds) != len(indices):
        raise ValueError(f"seeds: {len(seeds)} given for {len(indices)} indices")
    for name, values in (("seeds", seeds), ("indices", indices)):
        for value in values:
            try:
                operator.index(value)
            except TypeError:
                raise ValueError(f"{name}: {value!r} is not a whole number") from None
            if not 0 <= value < 2**31:
                raise ValueError(f"{name}: {value} must be in [0, 2^31)")
    keys = [jax.random.key(int(seed), impl=IMPLEMENTATION) for seed in seeds]
    return jax.vmap(jax.random.fold_in)(jnp.stack(keys), jnp.asarray(indices, jnp.uint32))


def fold_in_name(keys: Key[Array, " b"], name: str) -> Key[Array, " b"]:
    """Returns the keys for a stage or a purpose, by its name (its CRC-32: the same everywhere)."""
    return _fold_in(keys, jnp.uint32(zlib.crc32(name.encode())))


def fold_in_step(keys: Key[Array, " b"], step: int | Int[Array, ""]) -> Key[Array, " b"]:
    """Returns the keys for the noise of sampling step `step`, counted from 0; may be traced."""
    return _fold_in(fold_in_name(keys, "step"), step)


def normal(keys: Key[Array, " b"], shape: Sequence[int]) -> Float[Array, "b ..."]:
    """Returns standard normal noise, float32: for each key its own draw of `shape`."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape), jnp.float32))(keys)


def _fold_in(keys: Key[Array, " b"], data: int | Array) -> Key[Array, " b"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)
