"""The convolution with its own kernel gradient against lax's convolution, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.networks.kernel_gradient import conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def gradients(conv, x, kernel, **kwargs):
    """Of a loss that weighs every output differently."""

    def loss(x, kernel):
        y = conv(x, kernel, dimension_numbers=NHWC, **kwargs).astype(jnp.float32)
        return jnp.sum(jnp.sin(jnp.arange(y.size).reshape(y.shape)) * y), y

    (_, y), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, *grads


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 1), (5, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_output_and_gradients_are_those_of_lax(size, strides):
    x, kernel = draw(0, (3, 7, 6, 5)), draw(1, (*size, 5, 4))
    options = dict(window_strides=strides, padding="SAME")
    ours = gradients(conv_general_dilated, x, kernel, **options)
    theirs = gradients(jax.lax.conv_general_dilated, x, kernel, **options)
    for one, other in zip(ours, theirs):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5)


def test_a_kernel_larger_than_the_image():
    x, kernel = draw(0, (2, 1, 2, 3)), draw(1, (3, 3, 3, 2))
    options = dict(window_strides=(1, 1), padding="SAME")
    ours = gradients(conv_general_dilated, x, kernel, **options)
    theirs = gradients(jax.lax.conv_general_dilated, x, kernel, **options)
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_keep_their_dtype():
    x, kernel = draw(0, (2, 4, 4, 3), jnp.bfloat16), draw(1, (3, 3, 3, 2), jnp.bfloat16)
    options = dict(window_strides=(1, 1), padding="SAME")
    _, x_bar, kernel_bar = gradients(conv_general_dilated, x, kernel, **options)
    assert x_bar.dtype == kernel_bar.dtype == jnp.bfloat16
    exact = gradients(
        jax.lax.conv_general_dilated, x.astype(jnp.float32), kernel.astype(jnp.float32), **options
    )
    scale = float(jnp.abs(exact[2]).max())
    np.testing.assert_allclose(kernel_bar.astype(jnp.float32), exact[2], atol=0.02 * scale)


def test_on_cpu_the_kernel_gradient_is_matrix_products():
    x = draw(0, (2, 4, 4, 3))

    def loss(conv, kernel):
        return jnp.sum(jnp.cos(conv(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)))

    def products(conv):
        gradient = jax.jit(jax.grad(lambda kernel: loss(conv, kernel)))
        return gradient.lower(draw(1, (3, 3, 3, 2))).as_text().count("stablehlo.dot_general")

    assert products(conv_general_dilated) == 9
    assert products(jax.lax.conv_general_dilated) == 0  # so the count can tell
