"""Bringing x_hat back to the range of pixels, [-1, 1], after guidance has pushed it out.

Each kind is a frozen value and a function (x_hat, is_image) -> x_hat, where `is_image` [b] marks
rows that pack independent images instead of one video; None means that no row does. Dynamic
thresholding is written with reductions only, so that a clip split over many chips is never gathered
or sorted.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagen_video.array_types import Video

IsImage = Bool[Array, " b"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoThreshold:
    """Leaves x_hat as it is."""

    def __call__(self, x: Video, is_image: IsImage = None) -> Video:
        return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticClip:
    """clip(x, -1, 1): Imagen Video, arXiv 2210.02303, section 2.6.2, "the standard approach"."""

    def __call__(self, x: Video, is_image: IsImage = None) -> Video:
        return jnp.clip(x, -1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """clip(x, -s, s) / s, where s is a percentile of |x| but at least 1.

    s is taken for each sample over all its frames jointly, which avoids flicker (our choice: the
    paper, arXiv 2210.02303, section 2.6.2, does not say); for each image of a packed row by itself.
    Imagen (arXiv 2205.11487, section 2.3 and figure A.10) gives the percentile.

    Attributes:
      percentile: in (0, 100].
    """

    percentile: float = 99.5

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile: {self.percentile} must be in (0, 100]")

    def __call__(self, x: Video, is_image: IsImage = None) -> Video:
        percentile = functools.partial(percentile_of_magnitude, percentile=self.percentile)
        s = jnp.maximum(percentile(x), 1)
        if is_image is not None:
            s = jnp.where(is_image[:, None], jnp.maximum(jax.vmap(percentile)(x), 1), s[:, None])
        s = s.reshape(*s.shape, *(1,) * (x.ndim - s.ndim))
        return jnp.clip(x, -s, s) / s


Thresholding = NoThreshold | StaticClip | DynamicThreshold


def percentile_of_magnitude(x: Float[Array, "b ..."], *, percentile: float) -> Float[Array, " b"]:
    """Returns the percentile of |x| of each sample over all its other axes, float32.

    Equal to `numpy.percentile` of |x| in float32: linear interpolation between the two nearest
    order statistics. x is read as float32; NaN counts as larger than infinity.

    Args:
      x: [b ...], at most 2^31 - 1 values per sample.
      percentile: in [0, 100].

    Raises:
      ValueError: a sample has more values than an int32 counts.
    """
    count = math.prod(x.shape[1:])
    if count > np.iinfo(np.int32).max:
        raise ValueError(f"x: {count} values per sample exceed the range of an int32 count")
    # Python floats are float64: with 377 million values a float32 rank would be off by 16 places.
    rank = (count - 1) * (percentile / 100)
    lower_rank = math.floor(rank)
    lower, upper = adjacent_order_statistics(x, rank=lower_rank)
    return _interpolate(lower, upper, fraction=rank - lower_rank)


def adjacent_order_statistics(
    x: Float[Array, "b ..."], *, rank: int
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Returns the values of |x| at places `rank` and `rank + 1` of each sample's sorted order.

    Non-negative floats are ordered as their bit patterns are, so the first is the smallest
    pattern with more than `rank` values at or below it: found by 31 halvings of the int32 range,
    one count each. The second is the same value if it is repeated, else the next larger one.

    Args:
      x: [b ...], read as float32.
      rank: from 0, below the number of values per sample. After the last there is no next value:
        the last is returned twice.
    """
    axes = tuple(range(1, x.ndim))
    largest = np.iinfo(np.int32).max
    # The mask clears the sign: these are the bits of |x|.
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & largest

    def count_up_to(pattern: Int[Array, " b"]) -> Int[Array, " b"]:
        pattern = pattern.reshape(-1, *(1,) * len(axes))
        return jnp.sum(bits <= pattern, axis=axes, dtype=jnp.int32)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        found = count_up_to(middle) > rank
        return jnp.where(found, low, middle + 1), jnp.where(found, middle, high)

    low, high = jnp.zeros_like(bits, shape=x.shape[:1]), jnp.full(x.shape[:1], largest, jnp.int32)
    _, lower = jax.lax.fori_loop(0, 31, halve, (low, high))
    above = jnp.where(bits > lower.reshape(-1, *(1,) * len(axes)), bits, largest)
    is_last = rank == math.prod(x.shape[1:]) - 1
    repeated = (count_up_to(lower) > rank + 1) | is_last
    upper = jnp.where(repeated, lower, jnp.min(above, axis=axes))
    as_float = functools.partial(jax.lax.bitcast_convert_type, new_dtype=jnp.float32)
    return as_float(lower), as_float(upper)


def _interpolate(
    lower: Float[Array, " b"], upper: Float[Array, " b"], *, fraction: float
) -> Float[Array, " b"]:
    """The value `fraction` of the way up, in float32 from the nearer end, as numpy does it."""
    # upper >= lower, so abs changes nothing; it stops compilers from contracting product and sum
    # to one fused operation, which rounds differently.
    if fraction < 0.5:
        return lower + jnp.abs((upper - lower) * fraction)
    return upper - jnp.abs((upper - lower) * (1 - fraction))
