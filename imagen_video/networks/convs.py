"""Space-only and time-only convolutions of the separable U-Net (arXiv 2210.02303, Fig. 7).

Both run as 2-D convolutions on folded axes, with the weights of the equal 3-D ones (our choice).
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagen_video.networks.kernel_gradient import conv_general_dilated
from imagen_video.sharding import axes

_LECUN = nn.initializers.lecun_normal()
_ZEROS = nn.initializers.zeros_init()


class SpatialConv(nn.Module):
    """Convolution over height and width of each frame alone, parameters shared over frames.

    Attributes:
      features: output channels.
      kernel: odd side of the square kernel; edges are padded with zeros.
      stride: output is ceil(size / stride).
      zero_init: start as the zero function, so that a residual branch starts as the identity.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c2"]:
        """Maps [b f h w c] to [b f h/stride w/stride features]."""
        kernel_init = _ZEROS if self.zero_init else _LECUN
        conv = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            dtype=self.dtype,
            kernel_init=nn.with_logical_partitioning(
                kernel_init, (axes.KERNEL, axes.KERNEL, axes.IN, axes.OUT)
            ),
            bias_init=nn.with_logical_partitioning(_ZEROS, (axes.OUT,)),
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )
        frames = h.shape[1]
        h = conv(rearrange(h, "b f h w c -> (b f) h w c"))
        return rearrange(h, "(b f) h w c -> b f h w c", f=frames)


class TemporalConv(nn.Module):
    """Centred (not causal) convolution over three frames at each pixel, zero-initialised.

    The kernel length 3 and zero padding at both ends are our choice: arXiv 2210.02303 section 2.3
    names temporal convolutions without their size.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c2"]:
        """Maps [b f h w c] to [b f h w features]."""
        conv = nn.Conv(
            self.features,
            (3, 1),
            dtype=self.dtype,
            kernel_init=nn.with_logical_partitioning(
                _ZEROS, (axes.KERNEL, axes.KERNEL, axes.IN, axes.OUT)
            ),
            bias_init=nn.with_logical_partitioning(_ZEROS, (axes.OUT,)),
            conv_general_dilated=conv_general_dilated,
            name="conv",
        )
        width = h.shape[3]
        h = conv(rearrange(h, "b f h w c -> b f (h w) c"))
        return rearrange(h, "b f (h w) c -> b f h w c", w=width)


def space_to_depth(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """Folds block x block patches into channels: [b f h w c] to [b f h/block w/block block^2*c]."""
    return rearrange(h, "b f (h p) (w q) c -> b f h w (p q c)", p=block, q=block)


def depth_to_space(h: Float[Array, "b f h w c"], block: int) -> Float[Array, "b f h2 w2 c2"]:
    """Inverse of `space_to_depth`."""
    return rearrange(h, "b f h w (p q c) -> b f (h p) (w q) c", p=block, q=block)


def upsample_nearest(h: Float[Array, "b f h w c"], factor: int) -> Float[Array, "b f h2 w2 c"]:
    """Repeats each pixel `factor` times along height and width."""
    return jnp.repeat(jnp.repeat(h, factor, axis=2), factor, axis=3)
