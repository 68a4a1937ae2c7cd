"""Patches of pixels folded into channels, and back (the pixel shuffle of arXiv 1609.05158)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float


def space_to_depth(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """Folds block x block patches into channels: [b f h w c] to [b f h/block w/block block^2*c]."""
    return _by_platform(fold_by_product, fold_by_moves, h, block)


def depth_to_space(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """Inverse of `space_to_depth`."""
    return _by_platform(unfold_by_product, unfold_by_moves, h, block)


def fold_by_moves(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """`space_to_depth` as one transposition."""
    return rearrange(h, "b f (h p) (w q) c -> b f h w (p q c)", p=block, q=block)


def unfold_by_moves(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """`depth_to_space` as one transposition."""
    return rearrange(h, "b f h w (p q c) -> b f (h p) (w q) c", p=block, q=block)


def fold_by_product(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """`space_to_depth` as a product with ones and zeros, exact for finite pixels."""
    rows = rearrange(h, "b f (h p) x c -> b f h p x c", p=block)
    columns = _columns(h.shape[3], block, h.dtype)
    patches = jnp.einsum("bfhpxc,xwq->bfhwpqc", rows, columns, precision=jax.lax.Precision.HIGHEST)
    return rearrange(patches, "b f h w p q c -> b f h w (p q c)")


def unfold_by_product(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """`depth_to_space` as a product with ones and zeros, exact for finite pixels."""
    patches = rearrange(h, "b f h w (p q c) -> b f h w p q c", p=block, q=block)
    columns = _columns(h.shape[3] * block, block, h.dtype)
    rows = jnp.einsum("bfhwpqc,xwq->bfhpxc", patches, columns, precision=jax.lax.Precision.HIGHEST)
    return rearrange(rows, "b f h p x c -> b f (h p) x c")


def _by_platform(
    product: Callable[..., Array], moves: Callable[..., Array], h: Array, block: int
) -> Array:
    """Takes the product on TPUs, whose compiler moves three channels along 128 lanes."""
    if block == 1:
        return h
    return jax.lax.platform_dependent(
        h,
        tpu=functools.partial(product, block=block),
        default=functools.partial(moves, block=block),
    )


def _columns(width: int, block: int, dtype: jnp.dtype) -> Float[Array, "x w q"]:
    """One where column x of the pixels is column q of patch w, zero elsewhere."""
    return jnp.asarray(np.eye(width).reshape(width, width // block, block), dtype)
