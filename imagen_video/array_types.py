"""The arrays that rooms hand to one another, and the one network interface they share.

einops letters: `b` batch row, `f` frame, `h w` height and width, `c` channels,
`m` caption, `n` text token, `d` width of a text embedding.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

Video = Float[Array, "b f h w c"]
Image = Float[Array, "b h w c"]
LogSNR = Float[Array, " b"] | Float[Array, "b f"]
# The largest log-SNR of a schedule, in nats; the least is its negative. Networks tell none apart
# that lie farther out. From Video Diffusion Models (arXiv 2204.03458).
MAX_LOGSNR = 20.0
KeyArray = Key[Array, "..."]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything a denoiser reads besides z_t and its log-SNR. A pytree; None leaves are static.

    Fields are untyped because a tree of shapes or shardings has the same form.

    Attributes:
      text_emb: Float[m n d], frozen encoder outputs, one per caption; zeros where dropped.
      text_mask: Bool[m n], True at real tokens. An all-False row is the unconditional caption.
      caption_index: Int[b f], which of the m captions each frame reads; None means that every
        frame of row b reads caption b (then m == b), as in a batch of videos only.
      is_image: Bool[b], True where a row packs f independent images instead of one video, so
        that nothing may mix over frames; None means that no row does.
      low_res: Float[b f h w c], the previous stage's clip, noised on its own grid and resampled to
        this stage's grid, in [-1, 1] before noise; None for the base model.
      low_res_logsnr: Float[b] or Float[b f], log-SNR of that noise in nats; None for the base.
      guidance_weight: Float[b], w of Eq. 5 for models distilled with w as an input; else None.
    """

    text_emb: Any
    text_mask: Any
    caption_index: Any = None
    is_image: Any = None
    low_res: Any = None
    low_res_logsnr: Any = None
    guidance_weight: Any = None


@runtime_checkable
class DenoiseFn(Protocol):
    """A network with its parameters bound: what it predicts (v, eps or x) is its stage's choice."""

    def __call__(self, z_t: Video, logsnr_t: LogSNR, cond: Conditioning) -> Video:
        """Predicts from z_t (b f h w c) at logsnr_t (b or b f); same shape as z_t."""
        ...
