"""From `Conditioning` to what every block reads: one embedding vector and the caption's tokens."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from imagen_video.array_types import Conditioning, LogSNR
from imagen_video.networks.attention import TextKeys
from imagen_video.networks.captions import as_cached, captions_of_frames
from imagen_video.networks.embeddings import ScalarEmbedding, bounded_time, dense
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What one evaluation's blocks share.

    Attributes:
      emb: noise level, low-res noise level, guidance weight and pooled caption, summed; [b 1 e]
        where all frames of a row share them, else [b f e].
      tokens: projected caption tokens [m t e2].
      text_mask: True at real tokens [m t].
      caption_index: as in `Conditioning`.
      is_image: as in `Conditioning`.
    """

    emb: Any
    tokens: Any
    text_mask: Any
    caption_index: Any
    is_image: Any


class TextPooling(nn.Module):
    """Attention pooling of caption tokens by one learned query (arXiv 2205.11487, F.1)."""

    dim: int
    head_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "m t e"], mask: Bool[Array, "m t"]
    ) -> Float[Array, "m e2"]:
        """Returns a vector of width `dim` per caption; a dropped one pools the null token alone."""
        heads = tokens.shape[-1] // self.head_dim
        query = self.param(
            "query",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), (axes.HEADS, axes.HEAD_DIM)),
            (heads, self.head_dim),
        ).astype(self.dtype)
        null, text = TextKeys(heads, self.head_dim, dtype=self.dtype, name="text")(tokens)
        k, v = (
            jnp.concatenate([repeat(first, "k n d -> m k n d", m=len(rest)), rest], axis=1)
            for first, rest in zip(null, text)
        )
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        logits = jnp.einsum("nd,mtnd->mnt", query * self.head_dim**-0.5, k).astype(jnp.float32)
        p = nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf))
        pooled = jnp.einsum("mnt,mtnd->mnd", p.astype(self.dtype), v)
        pooled = pooled.reshape(*pooled.shape[:-2], -1)
        return dense(self.dim, dtype=self.dtype, names=(axes.IN, axes.EMB), name="out")(pooled)


class ContextEncoder(nn.Module):
    """Embeds noise levels and caption once per evaluation.

    The caption's frozen embeddings are layer-normalised and projected once, for all layers
    (our choice: per-layer projections of 4096-wide embeddings would cost more than the blocks').

    Attributes:
      emb_dim: width of the embedding every ResnetBlock reads.
      text_dim: width of the projected tokens.
      head_dim: of the pooling attention.
      guidance_weight: whether w of Eq. 5 is an input (distilled models).
      layout: as in `SpaceTimeBlock`.
    """

    emb_dim: int
    text_dim: int
    head_dim: int
    guidance_weight: bool = False
    dtype: DTypeLike = jnp.float32
    layout: Layout | None = None

    @nn.compact
    def __call__(self, logsnr_t: LogSNR, cond: Conditioning) -> Context:
        """Builds the `Context` of one evaluation at logsnr_t [b] or [b f]."""
        text_mask = cond.text_mask
        normed = nn.LayerNorm(
            dtype=jnp.float32,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), (axes.NORM,)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), (axes.NORM,)),
            name="text_norm",
        )(as_cached(cond.text_emb))
        names = (axes.IN, axes.TEXT)
        tokens = dense(self.text_dim, dtype=self.dtype, names=names, name="text_in")(normed)
        pooled = TextPooling(self.emb_dim, self.head_dim, dtype=self.dtype, name="text_pool")(
            tokens, text_mask
        )
        if cond.caption_index is None:
            emb = pooled[:, None]
        else:
            emb = captions_of_frames(pooled, cond.caption_index, layout=self.layout)

        def embed(name: str, values: Array, *, zero_init: bool = False) -> Array:
            values = values if values.ndim == 2 else values[:, None]
            return ScalarEmbedding(self.emb_dim, zero_init=zero_init, dtype=self.dtype, name=name)(
                values
            )

        emb = emb + embed("time", bounded_time(logsnr_t))
        if cond.low_res_logsnr is not None:
            emb = emb + embed("low_res_time", bounded_time(cond.low_res_logsnr))
        if self.guidance_weight:
            if cond.guidance_weight is None:
                raise ValueError("guidance_weight: this network reads w, and cond has None")
            # 1/(1 + w) is bounded for w >= 0 and resolves small weights, where w matters most.
            # It starts as 0, so that a student is its teacher, which has no such input.
            bounded_weight = 1.0 / (1.0 + cond.guidance_weight)
            emb = emb + embed("guidance_weight", bounded_weight, zero_init=True)
        return Context(
            emb=emb,
            tokens=tokens,
            text_mask=text_mask,
            caption_index=cond.caption_index,
            is_image=cond.is_image,
        )
