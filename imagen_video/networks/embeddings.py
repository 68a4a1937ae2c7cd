"""Sinusoidal embeddings of the scalars a denoiser reads: log-SNRs and the guidance weight."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagen_video.array_types import MAX_LOGSNR
from imagen_video.sharding import axes


def bounded_time(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
    """Maps a log-SNR in nats to (0, 1), equal to cosine diffusion time up to the clipped range.

    A log-SNR times 1000 would alias in the sinusoids; arctan(exp(-logsnr / 2)) / (pi / 2) is the
    input the authors' distillation code feeds ("inv_cos", arXiv 2202.00512).
    """
    return jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -MAX_LOGSNR, MAX_LOGSNR))) / (0.5 * math.pi)


def sinusoidal(values: Float[Array, "..."], dim: int) -> Float[Array, "... dim"]:
    """Sines and cosines of 1000 * values at `dim`/2 geometric frequencies from 1 to 1/10000.

    Args:
      values: of order 1, any shape, float32.
      dim: even length of the new last axis.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / (half - 1))
    angles = 1000.0 * values[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ScalarEmbedding(nn.Module):
    """Two-layer perceptron on the sinusoids of a scalar (arXiv 2204.03458, Appendix A).

    Attributes:
      dim: output width.
      num_features: number of sinusoids.
      zero_init: whether the embedding starts as 0, so that a trained network may be given it.
    """

    dim: int
    num_features: int = 256
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, values: Float[Array, "..."]) -> Float[Array, "... dim"]:
        """Embeds values of any shape, of order 1; returns [..., dim]."""
        h = sinusoidal(values.astype(jnp.float32), self.num_features).astype(self.dtype)
        names = (axes.IN, axes.EMB)
        h = nn.swish(dense(self.dim, dtype=self.dtype, names=names, name="hidden")(h))
        zero_init = self.zero_init
        return dense(self.dim, dtype=self.dtype, names=names, name="out", zero_init=zero_init)(h)


def dense(
    features: int, *, dtype: DTypeLike, names: tuple[str, str], name: str, zero_init: bool = False
) -> nn.Dense:
    """A Dense layer whose kernel axes carry logical `names`; float32 parameters."""
    init = nn.initializers.zeros_init() if zero_init else nn.initializers.lecun_normal()
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, names),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), names[-1:]),
        name=name,
    )
