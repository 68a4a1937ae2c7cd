"""A convolution whose kernel's gradient is, on CPU, a sum of matrix products.

XLA:CPU computes that gradient as a convolution with a window as large as the image, and moves
channels outermost for it: over half of the tiny ssr1's training step. One matrix product for each
of the kernel's positions is the same sum. Other platforms keep XLA's own form.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i o"],
    *,
    strides: tuple[int, int],
    padding: Padding,
) -> Float[Array, "n h2 w2 o"]:
    """Convolution with zeros before and after the two axes, as `padding` says.

    At stride 1 its kernel's gradient is the one above; at others it is lax's.
    """
    if strides == (1, 1):
        return _conv(x, kernel, padding)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)


def _lax_conv(x: Array, kernel: Array, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_NHWC)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, padding: Padding) -> Array:
    return _lax_conv(x, kernel, padding)


def _forward(x: Array, kernel: Array, padding: Padding):
    return _lax_conv(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, saved, g):
    x, kernel = saved
    (x_bar,) = jax.linear_transpose(lambda x: _lax_conv(x, kernel, padding), x)(g)
    kernel_bar = jax.lax.platform_dependent(
        x,
        g,
        cpu=partial(_by_products, kernel_size=kernel.shape[:2], padding=padding),
        default=lambda x, g: jax.linear_transpose(lambda k: _lax_conv(x, k, padding), kernel)(g)[0],
    )
    return x_bar, kernel_bar


_conv.defvjp(_forward, _backward)


def _by_products(
    x: Float[Array, "n h w i"],
    g: Float[Array, "n h2 w2 o"],
    *,
    kernel_size: tuple[int, int],
    padding: Padding,
) -> Float[Array, "kh kw i o"]:
    """Sums x shifted by each kernel position, transposed, times the output's cotangent g."""
    (kh, kw), (_, h, w, _) = kernel_size, g.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    g = g.reshape(-1, g.shape[-1])
    products = [
        padded[:, p : p + h, q : q + w].reshape(-1, x.shape[-1]).T @ g
        for p in range(kh)
        for q in range(kw)
    ]
    return jnp.stack(products).reshape(kh, kw, x.shape[-1], -1)
