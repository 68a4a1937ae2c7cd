"""The Video U-Net (arXiv 2210.02303, section 2.3) of Efficient U-Net blocks (arXiv 2205.11487).

    stem -> DBlock per level -> UBlock per level, back up -> join the stem -> one block -> out

A DBlock downsamples before its blocks, a UBlock upsamples after them, so most of the work happens
at the lower resolution. Skips are concatenated, scaled by 1/sqrt(2).
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from imagen_video.array_types import Conditioning, KeyArray, LogSNR, Video
from imagen_video.networks import blocks
from imagen_video.networks.conditioning import Context, ContextEncoder
from imagen_video.networks.convs import SpatialConv, upsample_nearest
from imagen_video.networks.norms import GroupNorm
from imagen_video.networks.patches import depth_to_space, space_to_depth
from imagen_video.networks.resnet import ResnetBlock
from imagen_video.networks.tiles import FRAMES_FIRST, axis_names, clip_order
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout, constrain

Attention = Literal["self", "cross", "none"]

_POSITIVE = (
    "stem_channels",
    "max_frames",
    "text_in_dim",
    "text_dim",
    "emb_dim",
    "head_dim",
    "groups",
    "space_to_depth",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of one Video U-Net. Levels are listed from the highest resolution down.

    Attributes:
      stem_channels: width at full resolution.
      channels: width of each level.
      strides: downsampling on entering each level.
      num_blocks: blocks in each level's DBlock and again in its UBlock.
      attention: of each level; "self" reads pixels and caption, "cross" the caption alone.
      attention_every_block: after every block, or once at the end of each DBlock and UBlock.
      temporal: "attention" in the base model, "convolution" in super-resolution models.
      max_frames: longest clip whose frame offsets have embeddings of their own, where `temporal` is
        attention.
      low_res: whether a low-resolution clip is concatenated to z_t.
      guidance_weight: whether the guidance weight is an input (distilled models).
      text_in_dim: width of the frozen encoder's embeddings.
      text_dim: width they are projected to.
      emb_dim: width of the noise-level embedding.
      head_dim: of all attention.
      groups: of all group norms.
      space_to_depth: side of the pixel patches folded into channels before the stem.
      scan_blocks: whether equal blocks, where a stack has three or more, have their parameters
        stacked and are one compiled loop body, which keeps compile times flat.
      unrolled_levels: so many levels, from the largest clips down, have those blocks
        compiled one after the other, with the same parameters: a loop copies what it keeps for the
        gradient, which costs most where clips are large, and keeps the statistics of a block's
        first norm from being computed with the block before.
      project_skips: whether a 1x1 convolution brings a joined skip back to the level's width before
        a UBlock's blocks, so that all blocks of a level are equal and, scanned, one compiled body
        each way. Otherwise the first block reads both, at the price of a body of its own.
      remat: what the backward pass recomputes: "none", "blocks" (all inside a block), or "products"
        (what is element by element; of a block it finds convolutions, projections, sums of
        residual branches, the norms' statistics, attention's probabilities and what it read).
      dtype: compute dtype name; parameters are float32.
    """

    stem_channels: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    num_blocks: tuple[int, ...]
    attention: tuple[Attention, ...]
    attention_every_block: bool
    temporal: Literal["attention", "convolution"]
    max_frames: int
    low_res: bool
    text_in_dim: int
    text_dim: int
    emb_dim: int
    guidance_weight: bool = False
    head_dim: int = 64
    groups: int = 32
    space_to_depth: int = 1
    scan_blocks: bool = True
    unrolled_levels: int = 0
    project_skips: bool = False
    remat: Literal["none", "blocks", "products"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        levels = len(self.channels)
        if not levels:
            raise ValueError("channels: there are no levels")
        for name in ("strides", "num_blocks", "attention"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name}: {len(getattr(self, name))} entries, but channels has {levels} levels"
                )
        for name in ("channels", "strides", "num_blocks"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)} has an entry below 1")
        if not 0 <= self.unrolled_levels <= levels:
            raise ValueError(f"unrolled_levels: {self.unrolled_levels} is not in 0 to {levels}")
        for channels in (self.stem_channels, *self.channels):
            if channels % self.groups:
                raise ValueError(f"channels: {channels} is not a multiple of groups {self.groups}")
        for channels, attention in zip(self.channels, self.attention):
            attends = attention != "none" or self.temporal == "attention"
            if attends and channels % self.head_dim:
                raise ValueError(
                    f"channels: {channels} is not a multiple of head_dim {self.head_dim}"
                )
        if self.text_dim % self.head_dim:
            raise ValueError(
                f"text_dim: {self.text_dim} is not a multiple of head_dim {self.head_dim}"
            )

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this."""
        return self.space_to_depth * math.prod(self.strides)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError, naming the multiple, where the strides do not divide the size."""
        for name, size in (("height", height), ("width", width)):
            if size % self.size_multiple:
                raise ValueError(f"{name}: {size} is not a multiple of {self.size_multiple}")


class VideoUNet(nn.Module):
    """A denoiser: from z_t, its log-SNR and the conditioning to v, or what it is trained for.

    Attributes:
      config: its shape.
      layout: how activations are spread over devices; None leaves that open. It changes no value.
    """

    config: UNetConfig
    layout: Layout | None = None

    @nn.compact
    def __call__(self, z_t: Video, logsnr_t: LogSNR, cond: Conditioning) -> Video:
        """Predicts for z_t [b f h w 3] at logsnr_t [b] or [b f]; returns [b f h w 3] float32.

        Raises:
          ValueError: height or width is not a multiple of `config.size_multiple`, or the
            conditioning lacks or has a low-res clip that the configuration does not say.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        config.check_size(*z_t.shape[2:4])
        if (cond.low_res is not None) != config.low_res:
            raise ValueError(f"low_res: the network has {config.low_res}, cond the contrary")
        context = ContextEncoder(
            config.emb_dim,
            config.text_dim,
            config.head_dim,
            guidance_weight=config.guidance_weight,
            dtype=dtype,
            layout=self.layout,
            name="context",
        )(logsnr_t, cond)

        x = z_t if cond.low_res is None else jnp.concatenate([z_t, cond.low_res], axis=-1)
        x = constrain(self.layout, x, axes.PIXELS)
        x = space_to_depth(x.astype(dtype), config.space_to_depth)
        order = clip_order(self.layout, x)
        fields = dict(dtype=dtype, order=order)
        x = rearrange(x, f"{FRAMES_FIRST} -> {order}")
        stem = self._conv(config.stem_channels, order, name="stem")(x)
        h, skips = stem, []
        for level in range(len(config.channels)):
            h = self._down(level, h, context, order)
            skips.append(h)
        for level in reversed(range(len(config.channels))):
            h = self._up(level, h, skips[level], context, order)
        h = constrain(self.layout, _join(h, stem), axis_names(order))
        last = ResnetBlock(
            config.stem_channels, config.groups, layout=self.layout, name="last", **fields
        )
        h = last(h, context.emb)
        h = nn.swish(GroupNorm(config.groups, name="out_norm", **fields)(h))
        channels = z_t.shape[-1] * config.space_to_depth**2
        h = self._conv(channels, order, zero_init=True, name="out")(h)
        h = rearrange(h, f"{order} -> {FRAMES_FIRST}")
        h = depth_to_space(h, config.space_to_depth).astype(jnp.float32)
        return constrain(self.layout, h, axes.PIXELS)

    def _down(self, level: int, h: Array, context: Context, order: str) -> Float[Array, "*clip c"]:
        """DBlock: strided convolution to the level's width, then its blocks."""
        config = self.config
        conv = self._conv(
            config.channels[level], order, stride=config.strides[level], name=f"down_{level}_conv"
        )
        return blocks.stack(self._blocks(level, order), conv(h), context, name=f"down_{level}")

    def _up(
        self, level: int, h: Array, skip: Array, context: Context, order: str
    ) -> Float[Array, "*clip c"]:
        """UBlock: join the skip (but at the lowest level, where h is the skip), blocks, convolution
        to the next width up, nearest upsampling.
        """
        config = self.config
        if level < len(config.channels) - 1:
            h = _join(h, skip)
            if config.project_skips:
                width = config.channels[level]
                h = self._conv(width, order, kernel=1, name=f"up_{level}_join")(h)
        h = blocks.stack(self._blocks(level, order), h, context, name=f"up_{level}")
        width = config.channels[level - 1] if level else config.stem_channels
        conv = self._conv(width, order, name=f"up_{level}_conv")
        return upsample_nearest(conv(h), config.strides[level], order=order)

    def _conv(self, features: int, order: str, **fields) -> SpatialConv:
        """A convolution in the network's dtype and layout."""
        dtype = jnp.dtype(self.config.dtype)
        return SpatialConv(features, dtype=dtype, order=order, layout=self.layout, **fields)

    def _blocks(self, level: int, order: str) -> blocks.BlockStack:
        """What the DBlock and the UBlock of a level are made of."""
        config = self.config
        return blocks.BlockStack(
            features=config.channels[level],
            num_blocks=config.num_blocks[level],
            groups=config.groups,
            head_dim=config.head_dim,
            attention=config.attention[level],
            attention_every_block=config.attention_every_block,
            temporal=config.temporal,
            max_offset=config.max_frames - 1,
            scan=config.scan_blocks,
            unroll=level < config.unrolled_levels,
            remat=config.remat,
            dtype=config.dtype,
            order=order,
            layout=self.layout,
        )


def init_params(config: UNetConfig, key: KeyArray) -> dict[str, Any]:
    """Draws initial float32 parameters, a plain tree; they fit clips of any size."""
    return nn.unbox(_init_boxed(config, key))


def param_axes(config: UNetConfig) -> dict[str, Any]:
    """Returns the logical axis names of every parameter, a tree like that of `init_params`."""
    specs = nn.get_partition_spec(jax.eval_shape(lambda: _init_boxed(config, jax.random.key(0))))
    return jax.tree.map(tuple, specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def _init_boxed(config: UNetConfig, key: KeyArray) -> dict[str, Any]:
    """Initial parameters in boxes that carry their logical axis names."""
    size = config.size_multiple
    z_t = jnp.zeros((1, 1, size, size, 3))
    cond = Conditioning(
        text_emb=jnp.zeros((1, 1, config.text_in_dim)),
        text_mask=jnp.ones((1, 1), bool),
        low_res=z_t if config.low_res else None,
        low_res_logsnr=jnp.zeros((1,)) if config.low_res else None,
        guidance_weight=jnp.zeros((1,)) if config.guidance_weight else None,
    )
    return VideoUNet(config).init(key, z_t, jnp.zeros((1,)), cond)["params"]


def _join(h: Float[Array, "*clip c"], skip: Float[Array, "*clip c2"]) -> Array:
    """Concatenates a long skip, scaled by 1/sqrt(2) (arXiv 2205.11487, B.1)."""
    return jnp.concatenate([h, skip * 2**-0.5], axis=-1)
