"""The convolution with its own kernel gradient against lax's convolution, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.networks.kernel_gradient import conv

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def lax_conv(x, kernel, *, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def gradients(conv, x, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
    """Of a loss that weighs every output differently."""

    def loss(x, kernel):
        y = conv(x, kernel, strides=strides, padding=padding).astype(jnp.float32)
        return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y), y

    (_, y), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, *grads


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 1), (5, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("padding", [((0, 0), (1, 1)), ((2, 1), (0, 3))])
def test_output_and_gradients_are_those_of_lax(size, strides, padding):
    x, kernel = draw(0, (3, 7, 6, 5)), draw(1, (*size, 5, 4))
    ours = gradients(conv, x, kernel, strides, padding)
    theirs = gradients(lax_conv, x, kernel, strides, padding)
    for one, other in zip(ours, theirs):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_a_kernel_larger_than_the_image():
    x, kernel = draw(0, (2, 1, 2, 3)), draw(1, (3, 3, 3, 2))
    ours = gradients(conv, x, kernel)
    theirs = gradients(lax_conv, x, kernel)
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_keep_their_dtype():
    x, kernel = draw(0, (2, 4, 4, 3), jnp.bfloat16), draw(1, (3, 3, 3, 2), jnp.bfloat16)
    _, x_bar, kernel_bar = gradients(conv, x, kernel)
    assert x_bar.dtype == kernel_bar.dtype == jnp.bfloat16
    exact = gradients(lax_conv, x.astype(jnp.float32), kernel.astype(jnp.float32))
    scale = float(jnp.abs(exact[2]).max())
    np.testing.assert_allclose(kernel_bar.astype(jnp.float32), exact[2], atol=0.02 * scale)


def test_on_cpu_the_kernel_gradient_is_matrix_products():
    x = draw(0, (2, 4, 4, 3))

    def loss(conv, kernel):
        return jnp.sum(jnp.cos(conv(x, kernel, strides=(1, 1), padding=((1, 1), (0, 2)))))

    def products(conv):
        gradient = jax.jit(jax.grad(lambda kernel: loss(conv, kernel)))
        return gradient.lower(draw(1, (3, 3, 3, 2))).as_text().count("stablehlo.dot_general")

    assert products(conv) == 9
    assert products(lax_conv) == 0  # so the count can tell
