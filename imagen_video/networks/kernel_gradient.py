"""A convolution whose kernel's gradient is, on CPU, a sum of matrix products.

XLA:CPU computes that gradient as a convolution with a window as large as the image, and moves
channels outermost for it: two thirds of a small U-Net's training step. One matrix product for each
of the kernel's positions is the same sum. Other platforms keep XLA's own form.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Float[Array, "n h w i"],
    rhs: Float[Array, "kh kw i o"],
    window_strides: tuple[int, int],
    padding: str,
    **options,
) -> Float[Array, "n h2 w2 o"]:
    """`jax.lax.conv_general_dilated` as `flax.linen.Conv` calls it, with the gradient above.

    That gradient is for stride 1, zero padding to the same size and odd kernels; any other
    convolution is lax's, gradient included.
    """
    plain = set(window_strides) == {1} and padding == "SAME" and all(k % 2 for k in rhs.shape[:2])
    if plain and options.get("feature_group_count", 1) == 1:
        return _conv(lhs, rhs)
    return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def _lax_conv(x: Float[Array, "n h w i"], kernel: Float[Array, "kh kw i o"]) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC)


@jax.custom_vjp
def _conv(x: Float[Array, "n h w i"], kernel: Float[Array, "kh kw i o"]) -> Array:
    return _lax_conv(x, kernel)


def _forward(x, kernel):
    return _lax_conv(x, kernel), (x, kernel)


def _backward(saved, g):
    x, kernel = saved
    (x_bar,) = jax.linear_transpose(lambda x: _lax_conv(x, kernel), x)(g)
    kernel_bar = jax.lax.platform_dependent(
        x,
        g,
        cpu=partial(_by_products, kernel_size=kernel.shape[:2]),
        default=lambda x, g: jax.linear_transpose(lambda k: _lax_conv(x, k), kernel)(g)[0],
    )
    return x_bar, kernel_bar


_conv.defvjp(_forward, _backward)


def _by_products(
    x: Float[Array, "n h w i"], g: Float[Array, "n h w o"], *, kernel_size: tuple[int, int]
) -> Float[Array, "kh kw i o"]:
    """Sums x shifted by each kernel position, transposed, times the output's cotangent g."""
    (kh, kw), (_, h, w, i) = kernel_size, x.shape
    padded = jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    g = g.reshape(-1, g.shape[-1])
    products = [
        padded[:, p : p + h, q : q + w].reshape(-1, i).T @ g for p in range(kh) for q in range(kw)
    ]
    return jnp.stack(products).reshape(kh, kw, i, -1)
