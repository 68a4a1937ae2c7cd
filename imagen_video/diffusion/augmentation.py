"""Conditioning augmentation: Gaussian noise on a super-resolution model's low-resolution input.

Training draws its strength at random, sampling fixes it, and the model is told it either way
(Imagen Video, arXiv 2210.02303, section 2.5; Ho et al., arXiv 2106.15282). The noise is put on the
previous stage's own grid, once per sample, before the clip is resampled to this stage's grid.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.array_types import LogSNR, Video
from imagen_video.diffusion.process import diffuse


def logsnr_from_snr(snr: float) -> float:
    """Returns log(snr), nats, of a linear signal-to-noise ratio alpha^2 / sigma^2 > 0."""
    if not (snr > 0 and math.isfinite(snr)):
        raise ValueError(f"snr: {snr} must be positive and finite")
    return math.log(snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationLevel:
    """The fixed strength of the noise at sampling time. Give one of the two fields.

    The paper's "SNR 3 or 5" does not say whether it is linear or logarithmic: linear 3 is
    sigma 0.5, log-SNR 3 is sigma 0.218. Both can be written, the second as an snr of e^3 = 20.09,
    too; the log-SNR is what is kept.

    Attributes:
      logsnr: log(alpha^2 / sigma^2), nats.
      snr: alpha^2 / sigma^2; turned into `logsnr` at construction, and None from then on.
    """

    logsnr: float | None = None
    snr: float | None = None

    def __post_init__(self) -> None:
        if (self.logsnr is None) == (self.snr is None):
            raise ValueError(f"logsnr: {self.logsnr}, snr: {self.snr}: exactly one must be given")
        if self.snr is not None:
            object.__setattr__(self, "logsnr", logsnr_from_snr(self.snr))
            object.__setattr__(self, "snr", None)
        if not math.isfinite(self.logsnr):
            raise ValueError(f"logsnr: {self.logsnr} must be finite")

    def broadcast(self, batch: int) -> Float[Array, " b"]:
        """Returns the log-SNR of each of `batch` samples, float32."""
        return jnp.full((batch,), self.logsnr, jnp.float32)


def augment(low_res: Video, *, eps: Video, logsnr: LogSNR) -> Video:
    """Returns alpha low_res + sigma eps: q(z | x) applied to the conditioning input.

    Args:
      low_res: in [-1, 1], on the previous stage's own grid.
      eps: standard normal, drawn once per sample, the same for all steps and both branches of
        guidance.
      logsnr: [b] or [b f], nats; what the model is told as `low_res_logsnr`.
    """
    return diffuse(x=low_res, eps=eps, logsnr_t=logsnr)
