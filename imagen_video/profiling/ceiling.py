"""How fast a program could be if nothing but its convolutions and dot products took time."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from imagen_video.profiling.hlo import ArrayType, parse_program
from imagen_video.profiling.products import Convolution
from imagen_video.profiling.schedule import program_cost
from imagen_video.profiling.slices import Chip

_DTYPES = {
    "bf16": jnp.bfloat16,
    "f32": jnp.float32,
    "s8": jnp.int8,
    "s32": jnp.int32,
    "pred": jnp.bool_,
}


def alone_seconds(products: Mapping[Convolution, int], device: jax.Device, chip: Chip) -> float:
    """Returns the compiler's estimate for the products, each compiled alone, one after the other.

    Args:
      products: how often each runs.
      device: one of the chips, abstract or real.
      chip: what it has.
    """
    return sum(times * _seconds(product, device, chip) for product, times in products.items())


def _seconds(product: Convolution, device: jax.Device, chip: Chip) -> float:
    lhs_labels, rhs_labels, out_labels = product.axes

    def spec(labels: dict[str, int], batch: str, feature: str) -> tuple[int, ...]:
        spatial = [labels[str(d)] for d in range(len(labels) - 2)]
        return (labels[batch], labels[feature], *spatial)

    flipped = [rhs_labels[str(d)] for d, backwards in enumerate(product.reversal) if backwards]

    # XLA has convolutions of mixed types, JAX has not; the conversions are fused.
    output_dtype = _DTYPES[product.output.dtype]
    dtype = jnp.promote_types(_DTYPES[product.lhs.dtype], _DTYPES[product.rhs.dtype])
    if dtype == jnp.bool_:  # masks, which JAX does not multiply
        dtype = jnp.dtype(jnp.bfloat16)

    def convolve(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        output = jax.lax.conv_general_dilated(
            lhs.astype(dtype),
            jax.lax.rev(rhs.astype(dtype), flipped),
            window_strides=product.stride,
            padding=product.padding,
            lhs_dilation=product.lhs_dilation,
            rhs_dilation=product.rhs_dilation,
            dimension_numbers=jax.lax.ConvDimensionNumbers(
                lhs_spec=spec(lhs_labels, "b", "f"),
                rhs_spec=spec(rhs_labels, "o", "i"),
                out_spec=spec(out_labels, "b", "f"),
            ),
            feature_group_count=product.feature_groups,
            batch_group_count=product.batch_groups,
            preferred_element_type=jnp.promote_types(dtype, output_dtype),
        )
        return output.astype(output_dtype)

    # The compiler chooses the layouts, as it does within a program.
    format_ = Format(Layout.AUTO, jax.sharding.SingleDeviceSharding(device))
    alone = jax.jit(convolve, in_shardings=format_, out_shardings=format_)
    compiled = alone.lower(_shape(product.lhs), _shape(product.rhs)).compile()
    return program_cost(parse_program(compiled.as_text()), chip).seconds


def _shape(array: ArrayType) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, _DTYPES[array.dtype])
