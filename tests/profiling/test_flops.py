"""FLOPs by closed form: 2 per multiply-add of what is convolved and contracted."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from imagen_video.profiling.flops import count_flops


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def conv(groups=1, **options):
    def apply(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            **{"window_strides": (1, 1), "padding": "SAME"} | options,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return apply


def test_a_dot_product():
    assert count_flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = count_flops(
        lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), shape(2, 3, 4, 8), shape(2, 5, 4, 8)
    )
    assert batched == 2 * (2 * 4 * 3 * 5) * 8
    two_axes = count_flops(
        lambda a, b: jnp.einsum("bhd,hdo->bo", a, b), shape(2, 3, 4), shape(3, 4, 5)
    )
    assert two_axes == 2 * 2 * 5 * (3 * 4)


def test_a_convolution_counts_padded_taps_and_strides():
    x, kernel = shape(2, 6, 8, 4), shape(3, 5, 4, 10)
    assert count_flops(conv(), x, kernel) == 2 * (2 * 6 * 8 * 10) * (3 * 5 * 4)
    strided = count_flops(conv(window_strides=(2, 2)), x, kernel)
    assert strided == 2 * (2 * 3 * 4 * 10) * (3 * 5 * 4)


def test_a_grouped_convolution_reads_its_group_alone():
    x = shape(1, 4, 4, 12)
    assert count_flops(conv(groups=3), x, shape(3, 3, 4, 6)) == 2 * (16 * 6) * (9 * 4)
    depthwise = count_flops(conv(groups=12), x, shape(3, 3, 1, 12))
    assert depthwise == 2 * (16 * 12) * 9


def test_the_order_of_axes_does_not_matter():
    def channels_first(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    found = count_flops(channels_first, shape(2, 4, 6, 8), shape(10, 4, 3, 5))
    assert found == count_flops(conv(), shape(2, 6, 8, 4), shape(3, 5, 4, 10))


def test_a_scan_counts_every_turn_and_nests():
    def body(carry, _):
        return carry @ carry, None

    def scan(length):
        return lambda x: lax.scan(body, x, None, length=length)[0]

    once = 2 * 4**3
    assert count_flops(scan(11), shape(4, 4)) == 11 * once

    def nested(x):
        return lax.scan(lambda c, _: (scan(3)(c), None), x, None, length=5)[0]

    assert count_flops(nested, shape(4, 4)) == 15 * once


def test_a_branch_counts_the_dearest_and_an_unknown_loop_one_turn():
    def branch(p, x):
        return lax.cond(p, lambda y: y @ y, lambda y: y @ y @ y, x)

    once = 2 * 4**3
    assert count_flops(branch, jax.ShapeDtypeStruct((), jnp.bool_), shape(4, 4)) == 2 * once

    def loop(n, x):
        return lax.fori_loop(0, n, lambda _, y: y @ y, x)

    assert count_flops(loop, jax.ShapeDtypeStruct((), jnp.int32), shape(4, 4)) == once


def with_own_gradient(fn):
    wrapped = jax.custom_jvp(fn)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(fn, primals, tangents))
    return wrapped


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap, with_own_gradient])
def test_what_is_wrapped_is_counted(wrap):
    def dots(x):
        return x @ jnp.ones((4, 6))

    assert count_flops(wrap(dots), shape(3, 2, 4)) == 2 * (3 * 2) * 4 * 6


def test_a_gradient_costs_the_dots_of_both_arguments():
    def loss(w, x):
        return jnp.sum(x @ w)

    forward, backward = 2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5
    found = count_flops(jax.value_and_grad(loss, argnums=(0, 1)), shape(4, 5), shape(3, 4))
    assert found == forward + backward


def test_elementwise_work_is_not_counted():
    assert count_flops(lambda x: jnp.sum(jnp.exp(x) * x), shape(100)) == 0


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "spacing"),
    [
        ((1, 1), ((1, 1), (2, 2)), (1, 1), (1, 1)),
        ((2, 3), ((0, 1), (3, 0)), (1, 1), (1, 1)),
        ((1, 1), ((2, 2), (-1, -2)), (2, 3), (1, 1)),
        ((2, 1), ((3, 4), (0, 0)), (1, 2), (2, 1)),
    ],
)
def test_inner_taps_are_the_ones_that_meet_a_one(stride, padding, dilation, spacing):
    """A kernel of ones over an image of ones counts what each output has read."""
    options = dict(
        window_strides=stride, padding=padding, lhs_dilation=dilation, rhs_dilation=spacing
    )
    ones = conv(**options)(jnp.ones((1, 6, 8, 1)), jnp.ones((3, 5, 1, 1)))
    found = count_flops(conv(**options), shape(2, 6, 8, 4), shape(3, 5, 4, 10), padded_taps=False)
    assert found == 2 * (2 * 4 * 10) * int(ones.sum())


def test_without_padding_a_valid_convolution_counts_the_same():
    shapes = shape(2, 6, 8, 4), shape(3, 5, 4, 10)
    valid = conv(padding="VALID")
    assert count_flops(valid, *shapes) == count_flops(valid, *shapes, padded_taps=False)
