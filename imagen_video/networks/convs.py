"""Space-only and time-only convolutions of the separable U-Net (arXiv 2210.02303, Fig. 7).

With frames first both run on folded axes, else as 3-D convolutions with a window of one along
axes that they do not mix, or, over frames in a tile's rows, as products (our choice).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.lax import conv_general_dilated as lax_conv
from jax.lax import dynamic_update_slice_in_dim
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from imagen_video.networks.kernel_gradient import conv
from imagen_video.networks.tiles import (
    CLIPS_IN_TILES,
    FRAMES_FIRST,
    FRAMES_IN_TILES,
    TILE_ROWS,
    axis_names,
    frames_on_several_tpus,
    store,
)
from imagen_video.sharding import axes
from imagen_video.sharding.halo import with_halo
from imagen_video.sharding.layout import Layout, gather_fsdp

KERNEL_AXES = (axes.KERNEL, axes.KERNEL, axes.IN, axes.OUT)
# Of clips with pixels first (`tiles`): what lies along a tile's rows is a convolution's batch.
_IN_TILES = ("HWDNC", "HWDIO", "HWDNC")
_NDHWC = ("NDHWC", "DHWIO", "NDHWC")
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
      order: of the clip's axes, in and out.
      layout: how clips are spread over devices; None leaves that open.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    order: str = FRAMES_FIRST
    layout: Layout | None = None

    @nn.compact
    def __call__(self, h: Float[Array, "*clip c"]) -> Float[Array, "*clip2 c2"]:
        """Maps [b f h w c] to [b f h/stride w/stride features], or so in another `order`."""
        shape = (self.kernel, self.kernel, h.shape[-1], self.features)
        kernel, bias = Kernel(shape, self.zero_init, name="conv")()
        letters = self.order.split()
        sizes = h.shape[letters.index("h")], h.shape[letters.index("w")]
        rows, columns = (_same(self.kernel, self.stride, size) for size in sizes)

        def convolve(h: Array, kernel: Array, rows: tuple[int, int]) -> Array:
            strides, padding = (self.stride, self.stride), (rows, columns)
            if self.order == FRAMES_FIRST:
                folded, frames = "(b f) h w c", h.shape[1]
                h = rearrange(h, f"{self.order} -> {folded}")
                h = conv(h, kernel, strides=strides, padding=padding)
                return rearrange(h, f"{folded} -> {self.order}", f=frames)
            strides, padding = (*strides, 1), (*padding, (0, 0))
            return lax_conv(h, kernel[:, :, None], strides, padding, dimension_numbers=_IN_TILES)

        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        h = _on_blocks(
            self.layout, convolve, h, kernel, "h", rows, stride=self.stride, order=self.order
        )
        return h + bias.astype(self.dtype)


class TemporalConv(nn.Module):
    """Centred (not causal) convolution over three frames at each pixel, zero-initialised.

    The kernel length 3 and zero padding at both ends are our choice: arXiv 2210.02303 section 2.3
    names temporal convolutions without their size.

    Attributes:
      features: output channels.
      order: of the clip's axes, in and out.
      layout: as in `SpatialConv`.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    order: str = FRAMES_FIRST
    layout: Layout | None = None

    @nn.compact
    def __call__(
        self, h: Float[Array, "*clip c"], is_image: Bool[Array, " b"] | None = None
    ) -> Float[Array, "*clip c2"]:
        """Maps [b f h w c] to [b f h w features], or so in another `order`.

        Args:
          h: the clip.
          is_image: rows without a bias: where h is zero, so is the output.
        """
        kernel, bias = Kernel((3, 1, h.shape[-1], self.features), True, name="conv")()
        if is_image is not None:
            aligned = " ".join(x if x in "bc" else "1" for x in self.order.split())
            bias = rearrange(jnp.where(is_image[:, None], 0.0, bias), f"b c -> {aligned}")

        by_columns = self.order == FRAMES_FIRST and frames_on_several_tpus(self.layout, h)

        def convolve(h: Array, kernel: Array, frames: tuple[int, int]) -> Array:
            if self.order == FRAMES_IN_TILES:
                return _over_frames_in_tiles(h, kernel, frames)
            if self.order == CLIPS_IN_TILES:
                padding = ((0, 0), (0, 0), frames)
                kernel = kernel[None].swapaxes(1, 2)
                return lax_conv(h, kernel, (1, 1, 1), padding, dimension_numbers=_IN_TILES)
            over_frames = _over_frames_by_columns if by_columns else _over_frames
            if frames != (0, 0):
                return over_frames(h, kernel)
            # Joined to its neighbours' frames, which only the outermost frames read.
            before, h, after = h[:, :1], h[:, 1:-1], h[:, -1:]
            h = over_frames(h, kernel)
            first, last = 0, h.shape[1] - 1
            put = partial(dynamic_update_slice_in_dim, axis=1)
            h = put(h, h[:, :1] + before @ kernel[0, 0], first)
            return put(h, h[:, -1:] + after @ kernel[2, 0], last)

        h, kernel = h.astype(self.dtype), kernel.astype(self.dtype)
        h = _on_blocks(self.layout, convolve, h, kernel, "f", (1, 1), order=self.order)
        h = store(self.layout, h, FRAMES_FIRST, order=self.order)
        return h + bias.astype(self.dtype)


def _over_frames(
    h: Float[Array, "b f h w c"], kernel: Float[Array, "3 1 c c2"]
) -> Float[Array, "b f h w c2"]:
    """The convolution over frames, zeros before the first and after the last."""
    width = h.shape[3]
    h = rearrange(h, "b f h w c -> b f (h w) c")
    h = conv(h, kernel, strides=(1, 1), padding=((1, 1), (0, 0)))
    return rearrange(h, "b f (h w) c -> b f h w c", w=width)


def _over_frames_in_tiles(
    h: Float[Array, "h w b f c"], kernel: Float[Array, "3 1 c c2"], zeros: tuple[int, int]
) -> Float[Array, "h w b f2 c2"]:
    """The convolution of frames that are rows of a TPU's tiles, with zeros before and after them.

    As one product for each of the kernel's frames, moved by a frame: XLA moves rows within a tile
    while it multiplies. For a convolution it would first copy the clip, frames out of the rows. In
    half precision three roundings take the place of one.
    """
    before, frames = zeros[0], h.shape[3] + sum(zeros) - 2
    return sum(_placed(h @ tap, before - i, frames) for i, tap in enumerate(kernel[:, 0]))


def _placed(
    x: Float[Array, "h w b f c"], start: int, frames: int
) -> Float[Array, "h w b frames c"]:
    """Of so many frames those of x, from `start` on where there is room, and zeros."""
    whole, of_frames = (0, 0, 0), (start, frames - start - x.shape[3], 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), (whole, whole, whole, of_frames, whole))


def _over_frames_by_columns(
    h: Float[Array, "b f h w c"], kernel: Float[Array, "3 1 c c2"]
) -> Float[Array, "b f h w c2"]:
    """`_over_frames` with eight columns as a TPU's convolution takes its batch: rows of a tile.

    So it reads and writes clips as they lie, and XLA copies nothing. The clips themselves would be
    a batch of two, guidance's branches.
    """
    height, width = h.shape[2:4]
    if width % TILE_ROWS:
        return _over_frames(h, kernel)
    h = rearrange(h, "b f h (w n) c -> n b f (h w) c", n=TILE_ROWS)
    padding = ((0, 0), (1, 1), (0, 0))
    h = lax_conv(h, kernel[None], (1, 1, 1), padding, dimension_numbers=_NDHWC)
    return rearrange(h, "n b f (h w) c -> b f h (w n) c", h=height)


def _same(kernel: int, stride: int, size: int) -> tuple[int, int]:
    """Zeros before and after an axis for an output of ceil(size / stride): "SAME"."""
    zeros = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return zeros // 2, zeros - zeros // 2


def _on_blocks(
    layout: Layout | None,
    convolve: Callable[[Array, Array, tuple[int, int]], Array],
    h: Float[Array, "*clip c"],
    kernel: Float[Array, "kh kw c c2"],
    axis: str,
    padding: tuple[int, int],
    *,
    stride: int = 1,
    order: str = FRAMES_FIRST,
) -> Float[Array, "*clip2 c2"]:
    """Convolves each device's block of the clip, joined to what it needs of its neighbours.

    Said by hand, because an axis that is cut cannot be folded into another without a gather, and
    because Shardy (jax 0.10.2), left to itself, doubles the gradient of the input of a convolution
    whose height and channels are cut.

    Args:
      layout: how the clip is cut; None for one device.
      convolve: of a block, a kernel, and the zeros before and after `axis`.
      h: the whole clip.
      kernel: output channels are cut where the layout says so.
      axis: letter of the one that the window runs over and that may be cut; others need no
        neighbour.
      padding: of that axis.
      stride: along that axis, which is joined on every device if the stride does not divide the
        blocks: their outputs would lie apart or overlap.
      order: of the clip's axes.
    """
    if layout is None:
        return convolve(h, kernel, padding)
    names, dim = axis_names(order), order.split().index(axis)
    *cuts, _ = layout.spec(names, h.shape)
    if cuts[dim] is not None and h.shape[dim] // layout.mesh.shape[cuts[dim]] % stride:
        cuts[dim] = None
    *_, features = layout.spec((*names[:-1], axes.OUT), (*h.shape[:-1], kernel.shape[-1]))
    # A small kernel lies whole on every device, but its features are computed where they belong.
    *rest, last = (*layout.param_spec(KERNEL_AXES, kernel.shape), *(None,) * kernel.ndim)[:4]
    kernel_spec = PartitionSpec(*rest, features or last)
    mesh_axis, (before, after) = cuts[dim], padding

    def block(h: Array, kernel: Array) -> Array:
        kernel = gather_fsdp(kernel, kernel_spec)
        if mesh_axis is None:
            return convolve(h, kernel, padding)
        h = with_halo(h, axis=dim, before=before, after=after, mesh_axis=mesh_axis)
        return convolve(h, kernel, (0, 0))

    return jax.shard_map(
        block,
        mesh=layout.mesh,
        in_specs=(PartitionSpec(*cuts, None), kernel_spec),
        out_specs=PartitionSpec(*cuts, features),
        check_vma=False,
    )(h, kernel)


def upsample_nearest(
    h: Float[Array, "*clip c"], factor: int, *, order: str = FRAMES_FIRST
) -> Float[Array, "*clip2 c"]:
    """Repeats each pixel `factor` times along height and width, of clips in `order`.

    As one broadcast: its gradient is one sum, where that of two repeats is two.
    """
    larger = order.replace("h", "(h p)").replace("w", "(w q)")
    return repeat(h, f"{order} -> {larger}", p=factor, q=factor)
