"""The residual block of the Video U-Net and the space-time block (arXiv 2210.02303, Fig. 7)."""

import functools
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from imagen_video.networks.attention import SpatialAttention, TemporalAttention
from imagen_video.networks.conditioning import Context
from imagen_video.networks.convs import SpatialConv, TemporalConv
from imagen_video.networks.embeddings import dense
from imagen_video.networks.norms import GroupNorm
from imagen_video.networks.residual import residual
from imagen_video.networks.tiles import (
    FRAMES_FIRST,
    FRAMES_IN_TILES,
    axis_names,
    frames_first,
    frames_on_several_tpus,
    store,
)
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout, constrain


class ResnetBlock(nn.Module):
    """GN-swish-conv, GN-FiLM-swish-conv plus a skip path, each frame alone (arXiv 2205.11487, B.1).

    FiLM scales and shifts after the second norm by a linear map of the embedding (scale-shift
    norm, arXiv 2105.05233). The second convolution starts at zero. A 1x1 convolution carries the
    skip path where the width changes.

    Attributes:
      features: channels out.
      order: of the clip's axes, in and out.
      layout: as in `SpaceTimeBlock`.
    """

    features: int
    groups: int
    dtype: DTypeLike = jnp.float32
    order: str = FRAMES_FIRST
    layout: Layout | None = None

    @nn.compact
    def __call__(
        self, h: Float[Array, "*clip c"], emb: Float[Array, "b f1 e"]
    ) -> Float[Array, "*clip c2"]:
        """Returns h with its `features`; emb is [b 1 e], one for all frames, or [b f e]."""
        norm = functools.partial(GroupNorm, dtype=self.dtype, order=self.order)
        conv = functools.partial(
            SpatialConv, self.features, dtype=self.dtype, order=self.order, layout=self.layout
        )
        skip = h
        h = norm(_divisor(h.shape[-1], self.groups), name="norm1")(h)
        h = conv(name="conv1")(nn.swish(h))
        film = dense(2 * self.features, dtype=self.dtype, names=(axes.EMB, axes.OUT), name="film")
        h = norm(self.groups, name="norm2")(h, film=film(nn.swish(emb)))
        h = conv(zero_init=True, name="conv2")(nn.swish(h))
        if skip.shape[-1] != self.features:
            skip = conv(kernel=1, name="skip")(skip)
        return residual(skip, h)


def _divisor(channels: int, groups: int) -> int:
    """The number of groups to use where `groups` need not divide a concatenation's width."""
    while channels % groups:
        groups //= 2
    return groups


class TemporalConvBlock(nn.Module):
    """Residual GN-swish-temporal-convolution, bypassed in rows of packed images (section 2.6)."""

    groups: int
    dtype: DTypeLike = jnp.float32
    order: str = FRAMES_FIRST
    layout: Layout | None = None

    @nn.compact
    def __call__(
        self, h: Float[Array, "*clip c"], is_image: Bool[Array, " b"] | None = None
    ) -> Float[Array, "*clip c"]:
        """Returns h plus the convolution, or h itself in rows where is_image."""
        # A neighbour's frame would be copied to and from a tile of its own: so where frames are
        # cut, they leave the tiles' rows.
        is_cut = self.order == FRAMES_IN_TILES and frames_on_several_tpus(
            self.layout, h, order=self.order
        )
        order = FRAMES_FIRST if is_cut else self.order
        h = rearrange(h, f"{self.order} -> {order}")
        norm = GroupNorm(self.groups, dtype=self.dtype, order=order, name="norm")
        # Zeros in rows of images, of which swish and the convolution make zeros.
        mixed = nn.swish(norm(h, store(self.layout, h, FRAMES_FIRST, order=order), zero=is_image))
        conv = TemporalConv(
            h.shape[-1], dtype=self.dtype, order=order, layout=self.layout, name="conv"
        )
        h = store(self.layout, h + conv(mixed, is_image), FRAMES_IN_TILES, order=order)
        return rearrange(h, f"{order} -> {self.order}")


class SpaceTimeBlock(nn.Module):
    """One block of Fig. 7: spatial convolutions, spatial attention, then the temporal operation.

    Attributes:
      features: channels out.
      attention: "self" (pixels and caption), "cross" (caption alone) or "none".
      temporal: "attention" (base) or "convolution" (super-resolution stages).
      max_offset: reach of the relative position embeddings, where temporal is "attention".
      order: of the clip's axes, in and out.
      layout: how activations are spread over devices; None leaves that open.
    """

    features: int
    groups: int
    head_dim: int
    attention: Literal["self", "cross", "none"]
    temporal: Literal["attention", "convolution"]
    max_offset: int
    dtype: DTypeLike = jnp.float32
    order: str = FRAMES_FIRST
    layout: Layout | None = None

    @nn.compact
    def __call__(self, h: Float[Array, "*clip c"], context: Context) -> Float[Array, "*clip c2"]:
        """Returns h with its `features`."""
        h = constrain(self.layout, h, axis_names(self.order))
        fields = dict(dtype=self.dtype, layout=self.layout)
        h = ResnetBlock(self.features, self.groups, order=self.order, name="resnet", **fields)(
            h, context.emb
        )
        if self.attention != "none":
            h = frames_first(
                SpatialAttention(
                    self.head_dim,
                    self.groups,
                    attend_pixels=self.attention == "self",
                    name="spatial",
                    **fields,
                ),
                self.order,
            )(h, context.tokens, context.text_mask, context.caption_index)
        if self.temporal == "attention":
            temporal = frames_first(
                TemporalAttention(
                    self.head_dim, self.groups, self.max_offset, name="temporal", **fields
                ),
                self.order,
            )
        else:
            temporal = TemporalConvBlock(self.groups, order=self.order, name="temporal", **fields)
        return temporal(h, context.is_image)
