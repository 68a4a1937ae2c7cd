"""The noise schedule: diffusion time t in [0, 1], 0 clean, to log-SNR in nats.

A schedule is a frozen value: a callable t -> logsnr_t, monotonically decreasing, with its inverse.
"""

import dataclasses
import math

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from imagen_video.array_types import MAX_LOGSNR


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Continuous-time cosine schedule: logsnr_t = -2 log tan(a t + b).

    It decreases strictly from logsnr_max at t = 0 (clean) to logsnr_min at t = 1 (noise); a and b
    follow from these two ends. This is alpha_t = cos(a t + b) of Nichol & Dhariwal
    (arXiv 2102.09672) in continuous time and without their offset s = 0.008, as in the code of
    Salimans & Ho (arXiv 2202.00512). The Imagen Video paper (arXiv 2210.02303, section 2.1) names
    the schedule but not its range; [-20, 20] is that of Video Diffusion Models (arXiv 2204.03458).

    Attributes:
      logsnr_min: log-SNR at t = 1, in nats, from -20.
      logsnr_max: log-SNR at t = 0, in nats, to 20.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        if not -MAX_LOGSNR <= self.logsnr_min < self.logsnr_max <= MAX_LOGSNR:
            raise ValueError(
                f"logsnr_min: {self.logsnr_min} must be less than logsnr_max {self.logsnr_max},"
                f" both from {-MAX_LOGSNR} to {MAX_LOGSNR}"
            )

    @property
    def angle_range(self) -> tuple[float, float]:
        """(b, c): b = arctan(sigma/alpha) at t = 0, c = arctan(alpha/sigma) at t = 1, radians."""
        return math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(self.logsnr_min / 2))

    def __call__(self, t: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """Returns logsnr_t in nats, in the dtype of t (float32 in production).

        Args:
          t: diffusion time in [0, 1], any shape.
        """
        # tan(a t + b) = sin(a t + b) / sin(a (1 - t) + c) since a + b + c = pi/2: each sine keeps
        # full float32 precision at both ends, where the tangent alone is off by 1e-3 at t = 1.
        t = jnp.asarray(t)
        b, c = self.angle_range
        a = math.pi / 2 - b - c
        return 2 * (jnp.log(jnp.sin(a * (1 - t) + c)) - jnp.log(jnp.sin(a * t + b)))

    def inverse(self, logsnr: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """Returns the t in [0, 1] at which the schedule has this log-SNR; the nearer end outside.

        Args:
          logsnr: nats, any shape.
        """
        b, c = self.angle_range
        a = math.pi / 2 - b - c
        t = (jnp.arctan(jnp.exp(-jnp.asarray(logsnr) / 2)) - b) / a
        return jnp.clip(t, 0, 1)
