"""Floating-point operations of a function, counted on its jaxpr.

XLA's own cost analysis counts a loop body once, however often it runs; the jaxpr says the trip
count. Counted are convolutions and dot products, 2 per multiply-add, padded taps included:
in a U-Net all else is below a percent.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Returns the FLOPs of `fn(*args, **kwargs)`; arguments are arrays or `jax.ShapeDtypeStruct`s.

    Loops count their trip count times where it is static (`scan`); a `while` of unknown length
    counts one iteration; of a `cond` the most expensive branch counts.
    """
    return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "dot_general":
        return _dot(equation)
    if name == "scan":
        return params["length"] * _count(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    return sum(_count(inner) for value in params.values() for inner in _jaxprs(value))


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


def _dot(equation: core.JaxprEqn) -> int:
    """Outputs times the contracted extent."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
