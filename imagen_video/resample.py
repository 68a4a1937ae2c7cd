"""Clips from one grid of frames, rows and columns to another: the same for training and sampling.

In space: bilinear with antialiasing (a triangle filter, widened when shrinking), pixel centres at
half-integers. In time: frames are skipped on the way down, and repeated or left blank on the way
up. Imagen Video, arXiv 2210.02303, sections 2.2 and 2.3. All functions take numpy or jax arrays
and return the same kind.
"""

import functools
import typing
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TemporalFill = Literal["repeat", "blank"]
Clip = Float[Array, "b f h w c"] | Float[np.ndarray, "b f h w c"]
Resampled = Float[Array, "b f_new h_new w_new c"] | Float[np.ndarray, "b f_new h_new w_new c"]


def resize(x: Clip, *, height: int, width: int) -> Resampled:
    """Returns the clip with every frame resized to height x width, in the dtype of x.

    Rows of the filter are normalised at the borders, so constants are kept and values stay in
    their range. The values are those of `jax.image.resize(method="bilinear", antialias=True)`.
    """
    rows, columns = x.shape[2:4]
    xp = _namespace(x)
    einsum = (
        functools.partial(np.einsum, optimize=True)
        if xp is np
        # The default precision of accelerators would round pixels to bfloat16.
        else functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    )
    if height != rows:
        x = einsum("bfhwc,yh->bfywc", x, xp.asarray(filter_matrix(rows, height), x.dtype))
    if width != columns:
        x = einsum("bfhwc,xw->bfhxc", x, xp.asarray(filter_matrix(columns, width), x.dtype))
    return x


def skip_frames(x: Clip, *, frames: int) -> Resampled:
    """Returns `frames` of x's frames: the first, and then every k-th, k = f / frames.

    Raises:
      ValueError: f is not a multiple of `frames`.
    """
    return x[:, :: _factor(x.shape[1], frames, shrink=True)]


def fill_frames(x: Clip, *, frames: int, fill: TemporalFill) -> Resampled:
    """Returns a clip of `frames` frames with frame j of x at j * k, k = frames / f.

    Args:
      x: the clip at the lower frame rate.
      frames: a multiple of x's frames.
      fill: what the k - 1 frames after each are: "repeat", copies of it; "blank", exactly 0.

    Raises:
      ValueError: `frames` is not a multiple of f, or `fill` is neither of the two.
    """
    if fill not in typing.get_args(TemporalFill):
        raise ValueError(f"fill: {fill!r} is not one of {typing.get_args(TemporalFill)}")
    b, f, h, w, c = x.shape
    k = _factor(f, frames, shrink=False)
    if k == 1:
        return x
    xp = _namespace(x)
    first = x[:, :, None]
    if fill == "repeat":
        filled = xp.broadcast_to(first, (b, f, k, h, w, c))
    else:
        filled = xp.concatenate([first, xp.zeros((b, f, k - 1, h, w, c), x.dtype)], axis=2)
    return filled.reshape(b, frames, h, w, c)


def downsample(x: Clip, *, frames: int, height: int, width: int) -> Resampled:
    """Returns x on a coarser grid: frames skipped, then resized in space."""
    return resize(skip_frames(x, frames=frames), height=height, width=width)


def upsample(
    low_res: Clip, *, frames: int, height: int, width: int, fill: TemporalFill
) -> Resampled:
    """Returns the previous stage's clip on this stage's grid: resized in space, filled in time.

    Blank frames stay exactly 0.
    """
    resized = resize(low_res, height=height, width=width)
    return fill_frames(resized, frames=frames, fill=fill)


@functools.lru_cache(maxsize=256)
def filter_matrix(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Returns the float64 weights, non-negative with rows that sum to 1, of a 1-D resize."""
    scale = size / new_size
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(size)) / max(scale, 1.0)
    weights = np.maximum(1 - distance, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    weights.setflags(write=False)  # shared by all callers through the cache
    return weights


def _factor(frames: int, new_frames: int, *, shrink: bool) -> int:
    larger, smaller = (frames, new_frames) if shrink else (new_frames, frames)
    if smaller < 1 or larger % smaller:
        of = "a divisor" if shrink else "a multiple"
        raise ValueError(f"frames: {new_frames} must be {of} of the clip's {frames} frames")
    return larger // smaller


def _namespace(x: Clip) -> ModuleType:
    return np if isinstance(x, np.ndarray) else jnp
