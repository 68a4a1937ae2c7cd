"""Floating-point operations of a function, counted on its jaxpr.

XLA's own cost analysis counts a loop body once, however often it runs; the jaxpr says the trip
count. Counted are convolutions and dot products, 2 per multiply-add: in a U-Net all else is below
a percent.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core


def count_flops(fn: Callable[..., Any], *args: Any, padded_taps: bool = True, **kwargs: Any) -> int:
    """Returns the FLOPs of `fn(*args, **kwargs)`; arguments are arrays or `jax.ShapeDtypeStruct`s.

    Loops count their trip count times where it is static (`scan`); a `while` of unknown length
    counts one iteration; of a `cond` the most expensive branch counts.

    Args:
      fn: the function.
      *args: of it.
      padded_taps: whether multiplications with a convolution's padding count, as is the custom.
      **kwargs: of it.
    """
    return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr, padded_taps)


def inner_taps(
    *, size: int, output: int, window: int, stride: int, low: int, dilation: int, spacing: int
) -> int:
    """Counts the products of inputs and window positions along one axis of a convolution.

    Args:
      size: of the input.
      output: size of the output.
      window: size of the kernel.
      stride: of the window.
      low: zeros before the input, negative if it is cropped.
      dilation: distance of neighbouring inputs; between them are holes.
      spacing: distance of neighbouring kernel elements.
    """
    at = np.add.outer(np.arange(output) * stride, np.arange(window) * spacing) - low
    return int(np.sum((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)))


def _count(jaxpr: core.Jaxpr, padded_taps: bool) -> int:
    return sum(_count_equation(equation, padded_taps) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn, padded_taps: bool) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return _convolution(equation) if padded_taps else _inner_convolution(equation)
    if name == "dot_general":
        return _dot(equation)
    if name == "scan":
        return params["length"] * _count(params["jaxpr"].jaxpr, padded_taps)
    if name == "cond" and params.get("branches_platforms"):
        # One is compiled; the last is what is done on any platform, and others do the same.
        return _count(params["branches"][-1].jaxpr, padded_taps)
    if name == "cond":
        return max(_count(branch.jaxpr, padded_taps) for branch in params["branches"])
    return sum(_count(inner, padded_taps) for value in params.values() for inner in _jaxprs(value))


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, list | tuple):
        return [inner for item in value for inner in _jaxprs(item)]
    return []


def _convolution(equation: core.JaxprEqn) -> int:
    """Outputs times taps; the kernel's input-feature axis is already divided by the group count."""
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features


def _inner_convolution(equation: core.JaxprEqn) -> int:
    """Without the taps that fall on padding or holes."""
    params, (lhs, rhs), output = equation.params, equation.invars[:2], equation.outvars[0].aval
    (_, _, *lhs_axes), (_, i, *rhs_axes), (n, o, *out_axes) = params["dimension_numbers"]
    taps = math.prod(
        inner_taps(
            size=lhs.aval.shape[lhs_axes[d]],
            output=output.shape[out_axes[d]],
            window=rhs.aval.shape[rhs_axes[d]],
            stride=params["window_strides"][d],
            low=params["padding"][d][0],
            dilation=params["lhs_dilation"][d],
            spacing=params["rhs_dilation"][d],
        )
        for d in range(len(lhs_axes))
    )
    return 2 * taps * output.shape[n] * output.shape[o] * rhs.aval.shape[i]


def _dot(equation: core.JaxprEqn) -> int:
    """Outputs times the contracted extent."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
