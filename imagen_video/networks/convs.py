"""Space-only and time-only convolutions of the separable U-Net (arXiv 2210.02303, Fig. 7).

Both run as 2-D convolutions on folded axes, with the weights of the equal 3-D ones (our choice);
over frames that are cut, the time-only one is a product of each frame beside its neighbours.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagen_video.networks.kernel_gradient import conv
from imagen_video.sharding import axes
from imagen_video.sharding.halo import with_halo
from imagen_video.sharding.layout import Layout, gather_fsdp

KERNEL_AXES = (axes.KERNEL, axes.KERNEL, axes.IN, axes.OUT)
_LECUN = nn.initializers.lecun_normal()
_ZEROS = nn.initializers.zeros_init()


class Kernel(nn.Module):
    """The parameters of a convolution, as `flax.linen.Conv` names and draws them."""

    shape: tuple[int, int, int, int]
    zero_init: bool

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "kh kw i o"], Float[Array, " o"]]:
        """Returns kernel and bias, float32."""
        init = nn.with_logical_partitioning(_ZEROS if self.zero_init else _LECUN, KERNEL_AXES)
        bias_init = nn.with_logical_partitioning(_ZEROS, KERNEL_AXES[-1:])
        kernel = self.param("kernel", init, self.shape)
        return kernel, self.param("bias", bias_init, self.shape[-1:])


class SpatialConv(nn.Module):
    """Convolution over height and width of each frame alone, parameters shared over frames.

    Attributes:
      features: output channels.
      kernel: odd side of the square kernel; edges are padded with zeros.
      stride: output is ceil(size / stride).
      zero_init: start as the zero function, so that a residual branch starts as the identity.
      dtype: compute dtype; parameters are float32.
      layout: how clips are spread over devices; None leaves that open.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    layout: Layout | None = None

    @nn.compact
    def __call__(self, h: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c2"]:
        """Maps [b f h w c] to [b f h/stride w/stride features]."""
        shape = (self.kernel, self.kernel, h.shape[-1], self.features)
        kernel, bias = Kernel(shape, self.zero_init, name="conv")()
        rows, columns = (_same(self.kernel, self.stride, size) for size in h.shape[2:4])

        def convolve(h: Array, kernel: Array, rows: tuple[int, int]) -> Array:
            frames = h.shape[1]
            h = rearrange(h, "b f h w c -> (b f) h w c")
            h = conv(h, kernel, strides=(self.stride, self.stride), padding=(rows, columns))
            return rearrange(h, "(b f) h w c -> b f h w c", f=frames)

        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        h = _on_blocks(self.layout, convolve, h, kernel, axis=2, padding=rows, stride=self.stride)
        return h + bias.astype(self.dtype)


class TemporalConv(nn.Module):
    """Centred (not causal) convolution over three frames at each pixel, zero-initialised.

    The kernel length 3 and zero padding at both ends are our choice: arXiv 2210.02303 section 2.3
    names temporal convolutions without their size.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    layout: Layout | None = None

    @nn.compact
    def __call__(self, h: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c2"]:
        """Maps [b f h w c] to [b f h w features]."""
        kernel, bias = Kernel((3, 1, h.shape[-1], self.features), True, name="conv")()

        def convolve(h: Array, kernel: Array, frames: tuple[int, int]) -> Array:
            if frames == (0, 0):  # the neighbours' frames are joined already
                return _beside_neighbours(h) @ rearrange(kernel, "t 1 i o -> (t i) o")
            width = h.shape[3]
            h = rearrange(h, "b f h w c -> b f (h w) c")
            h = conv(h, kernel, strides=(1, 1), padding=(frames, (0, 0)))
            return rearrange(h, "b f (h w) c -> b f h w c", w=width)

        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        h = _on_blocks(self.layout, convolve, h, kernel, axis=1, padding=(1, 1))
        return h + bias.astype(self.dtype)


def _beside_neighbours(h: Float[Array, "b f2 h w c"]) -> Float[Array, "b f h w c3"]:
    """Joins to the channels of each frame but the outermost two those of the one before and after.

    For blocks that are joined to frames of other devices: XLA's convolution first copies those to
    its own layout, which takes longer than the convolution. As one product on a v5e:4x4, the
    temporal block takes 0.4 of the time. Where no frames are joined, the convolution takes 0.6 to
    0.75 of the product's (compiler's estimates).
    """
    frames = h.shape[1] - 2
    return jnp.concatenate([h[:, i : i + frames] for i in range(3)], axis=-1)


def _same(kernel: int, stride: int, size: int) -> tuple[int, int]:
    """Zeros before and after an axis for an output of ceil(size / stride): "SAME"."""
    zeros = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return zeros // 2, zeros - zeros // 2


def _on_blocks(
    layout: Layout | None,
    convolve: Callable[[Array, Array, tuple[int, int]], Array],
    h: Float[Array, "b f h w c"],
    kernel: Float[Array, "kh kw c c2"],
    *,
    axis: int,
    padding: tuple[int, int],
    stride: int = 1,
) -> Float[Array, "b f h2 w2 c2"]:
    """Convolves each device's block of the clip, joined to what it needs of its neighbours.

    Said by hand, because an axis that is cut cannot be folded into another without a gather, and
    because Shardy (jax 0.10.2), left to itself, doubles the gradient of the input of a convolution
    whose height and channels are cut.

    Args:
      layout: how the clip is cut; None for one device.
      convolve: of a block, a kernel, and the zeros before and after `axis`.
      h: the whole clip.
      kernel: output channels are cut where the layout says so.
      axis: that the window runs over and that may be cut; others need no neighbour.
      padding: of that axis.
      stride: along that axis, which is joined on every device if the stride does not divide the
        blocks: their outputs would lie apart or overlap.
    """
    if layout is None:
        return convolve(h, kernel, padding)
    *cuts, _ = layout.spec(axes.CLIP, h.shape)
    if cuts[axis] is not None and h.shape[axis] // layout.mesh.shape[cuts[axis]] % stride:
        cuts[axis] = None
    *_, features = layout.spec((*axes.CLIP[:-1], axes.OUT), (*h.shape[:-1], kernel.shape[-1]))
    # A small kernel lies whole on every device, but its features are computed where they belong.
    *rest, last = (*layout.param_spec(KERNEL_AXES, kernel.shape), *(None,) * kernel.ndim)[:4]
    kernel_spec = PartitionSpec(*rest, features or last)
    mesh_axis, (before, after) = cuts[axis], padding

    def block(h: Array, kernel: Array) -> Array:
        kernel = gather_fsdp(kernel, kernel_spec)
        if mesh_axis is None:
            return convolve(h, kernel, padding)
        h = with_halo(h, axis=axis, before=before, after=after, mesh_axis=mesh_axis)
        return convolve(h, kernel, (0, 0))

    return jax.shard_map(
        block,
        mesh=layout.mesh,
        in_specs=(PartitionSpec(*cuts, None), kernel_spec),
        out_specs=PartitionSpec(*cuts, features),
        check_vma=False,
    )(h, kernel)


def upsample_nearest(h: Float[Array, "b f h w c"], factor: int) -> Float[Array, "b f h2 w2 c"]:
    """Repeats each pixel `factor` times along height and width.

    As one broadcast: its gradient is one sum, where that of two repeats is two.
    """
    return repeat(h, "b f h w c -> b f (h p) (w q) c", p=factor, q=factor)
