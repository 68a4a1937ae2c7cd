"""Attention over the pixels of a frame, over caption tokens, and over frames.

Height and width are folded into one axis of pixels, which fills a TPU's tiles where two small ones
leave most of them empty. Where the height is cut over devices they stay two axes: folding would
fold a cut axis and force a gather, which only the keys of a frame need. Letters: b f h w as ever; p
pixels, height and width folded; k keys, a frame's pixels, its caption's tokens or the null token;
g the frame of keys; t text token; n head; d head_dim.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from imagen_video.networks.captions import captions_of_frames
from imagen_video.networks.norms import GroupNorm
from imagen_video.networks.residual import residual
from imagen_video.networks.softmax import softmax
from imagen_video.networks.tiles import store_as_written
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout

_LECUN = nn.initializers.lecun_normal()
_ZEROS = nn.initializers.zeros_init()
_RELATIVE = nn.initializers.normal(1.0)

# What rematerialisation knows the values read by, before their projection.
READ = "attention_read"

# Axes of the logits over frames, then of their pixels, folded or not.
_LOGITS = (axes.BATCH, axes.HEADS, axes.FRAMES, None)
_PIXELS = {1: (None,), 2: (axes.HEIGHT, axes.WIDTH)}


def heads_projection(heads: int, head_dim: int, *, dtype: DTypeLike, name: str) -> nn.DenseGeneral:
    """[... c] to [... n d], no bias."""
    names = (axes.IN, axes.HEADS, axes.HEAD_DIM)
    return nn.DenseGeneral(
        (heads, head_dim),
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(_LECUN, names),
        name=name,
    )


def out_projection(features: int, *, dtype: DTypeLike, name: str = "out") -> nn.DenseGeneral:
    """[... n d] to [... features], zero-initialised so that the residual branch starts at zero."""
    names = (axes.HEADS, axes.HEAD_DIM, axes.OUT)
    return nn.DenseGeneral(
        features,
        axis=(-2, -1),
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(_ZEROS, names),
        bias_init=nn.with_logical_partitioning(_ZEROS, (axes.OUT,)),
        name=name,
    )


class TextKeys(nn.Module):
    """Keys and values of the caption tokens, and of one learned null token, always attended.

    The null token keeps the softmax defined when a caption is dropped (our choice). It is returned
    apart, for 128 tokens fill a TPU's tiles, and 129 leave half of them empty.
    """

    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "m t e"]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Returns key and value [1 n d] of the null token, then [m t n d] of the captions'."""
        shape = (1, 1, self.heads, self.head_dim)
        nulls = [
            self.param(
                name,
                nn.with_logical_partitioning(
                    nn.initializers.normal(0.02), (None, None, axes.HEADS, axes.HEAD_DIM)
                ),
                shape,
            ).astype(self.dtype)[0]
            for name in ("null_key", "null_value")
        ]
        project = [
            heads_projection(self.heads, self.head_dim, dtype=self.dtype, name=name)(tokens)
            for name in ("text_key", "text_value")
        ]
        return tuple(nulls), tuple(project)


class SpatialAttention(nn.Module):
    """Residual attention of a pixel over its frame and its caption (arXiv 2205.11487, B.1).

    One softmax is over the frame's pixels, its caption's tokens and the null token. Their keys are
    three arrays: to join them, and cut their gradient again, took 3% of the base's training step.
    With `attend_pixels=False` only the caption is read: cross-attention, for stages without spatial
    self-attention (arXiv 2210.02303 section 2.3).
    """

    head_dim: int
    groups: int
    attend_pixels: bool = True
    dtype: DTypeLike = jnp.float32
    layout: Layout | None = None

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "b f h w c"],
        tokens: Float[Array, "m t e"],
        text_mask: Bool[Array, "m t"],
        caption_index: Array | None = None,
    ) -> Float[Array, "b f h w c"]:
        """Returns h plus what it read; caption_index Int[b f] or None as in `Conditioning`."""
        channels = h.shape[-1]
        heads = channels // self.head_dim
        normed = GroupNorm(self.groups, dtype=self.dtype, name="norm")(h)
        pixels = "hw" if _height_is_cut(self.layout, h) else "p"
        if pixels == "p":
            normed = rearrange(normed, "b f h w c -> b f (h w) c")

        def project(name):
            return heads_projection(heads, self.head_dim, dtype=self.dtype, name=name)(normed)

        q = project("query") * self.head_dim**-0.5
        null, text = TextKeys(heads, self.head_dim, dtype=self.dtype, name="text")(tokens)
        if caption_index is not None:
            *text, text_mask = (
                captions_of_frames(a, caption_index, layout=self.layout) for a in (*text, text_mask)
            )
        parts = [null, text]
        if self.attend_pixels:
            parts.append((_of_frame(project("key")), _of_frame(project("value"))))
        keys = {3: "knd", 4: "bknd", 5: "bfknd"}
        logits = [jnp.einsum(f"bf{pixels}nd,{keys[k.ndim]}->bfn{pixels}k", q, k) for k, _ in parts]
        shape = (len(text_mask), -1, *(1,) * (1 + len(pixels)), text_mask.shape[-1])
        logits[1] = jnp.where(text_mask.reshape(shape), logits[1], -jnp.inf)
        out = sum(
            jnp.einsum(f"bfn{pixels}k,{keys[v.ndim]}->bf{pixels}nd", p, v)
            for p, (_, v) in zip(softmax(logits, -1), parts)
        )
        out = checkpoint_name(out.reshape(*h.shape[:-1], heads, self.head_dim), READ)
        return residual(h, out_projection(channels, dtype=self.dtype)(out))


def _of_frame(of_pixels: Float[Array, "b f *p n d"]) -> Float[Array, "b f k n d"]:
    """Keys, or values, of all pixels of a frame in a row."""
    if of_pixels.ndim == 6:
        # Gathered by the compiler's own choice of place: asked for by a constraint, XLA's CPU
        # devices waited for each other without end where heads were cut, too (jax 0.10.2).
        of_pixels = rearrange(of_pixels, "b f h w n d -> b f (h w) n d")
    return of_pixels


def _height_is_cut(layout: Layout | None, h: Float[Array, "b f h w c"]) -> bool:
    return layout is not None and layout.spec(axes.CLIP, h.shape)[2] is not None


class TemporalAttention(nn.Module):
    """Residual attention of a pixel over itself in all frames (arXiv 2204.03458, section 3).

    Aware of relative position as in Shaw et al. (arXiv 1803.02155, Eqs. 3 and 4), whom section 3
    cites: an embedding per frame offset (query minus key), shared by all heads, joins the keys and
    another the values. With values that know their offset a frame can tell the first from the last.
    In rows of packed images the attention matrix is fixed to the identity, so that a frame reads
    itself alone.

    Attributes:
      max_offset: offsets beyond +-max_offset share the outermost embedding.
    """

    head_dim: int
    groups: int
    max_offset: int
    dtype: DTypeLike = jnp.float32
    layout: Layout | None = None

    @nn.compact
    def __call__(
        self, h: Float[Array, "b f h w c"], is_image: Bool[Array, " b"] | None = None
    ) -> Float[Array, "b f h w c"]:
        """Returns h plus what each frame read from the others."""
        channels, frames = h.shape[-1], h.shape[1]
        heads = channels // self.head_dim
        normed = GroupNorm(self.groups, dtype=self.dtype, name="norm")(h)
        pixels = "hw" if _height_is_cut(self.layout, h) else "p"
        if pixels == "p":
            normed = rearrange(normed, "b f h w c -> b f (h w) c")
        q, k, v = (
            heads_projection(heads, self.head_dim, dtype=self.dtype, name=name)(normed)
            for name in ("query", "key", "value")
        )
        frame = jnp.arange(frames)
        offset = jnp.clip(frame[:, None] - frame[None, :], -self.max_offset, self.max_offset)
        a_k, a_v = (
            self.param(
                name,
                nn.with_logical_partitioning(_RELATIVE, (axes.OFFSETS, axes.HEAD_DIM)),
                (2 * self.max_offset + 1, self.head_dim),
            ).astype(self.dtype)[offset + self.max_offset]
            for name in ("relative_key", "relative_value")
        )
        q = q * self.head_dim**-0.5
        # Pixels last: a TPU's tiles are full of them, and nearly empty of the few frames.
        by_pixel = functools.partial(
            store_as_written, self.layout, names=_LOGITS + _PIXELS[len(pixels)]
        )
        logits = by_pixel(jnp.einsum(f"bf{pixels}nd,bg{pixels}nd->bnfg{pixels}", q, k))
        logits = logits + by_pixel(jnp.einsum(f"bf{pixels}nd,fgd->bnfg{pixels}", q, a_k))
        if is_image is not None:
            itself = jnp.eye(frames, dtype=bool)
            attended = jnp.where(is_image[:, None, None], itself, True)
            attended = attended.reshape(-1, 1, frames, frames, *(1,) * len(pixels))
            logits = jnp.where(attended, logits, -jnp.inf)
        p = by_pixel(softmax([logits], 3)[0])
        out = jnp.einsum(f"bnfg{pixels},bg{pixels}nd->bf{pixels}nd", p, v)
        out = out + jnp.einsum(f"bnfg{pixels},fgd->bf{pixels}nd", p, a_v)
        out = checkpoint_name(out.reshape(*h.shape[:-1], heads, self.head_dim), READ)
        return h + out_projection(channels, dtype=self.dtype)(out)
