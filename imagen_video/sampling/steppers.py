"""One step of a sampler: from z_t and the x_hat predicted there to a cleaner z.

Steps are numbered i = N-1, ..., 0 on a uniform grid: step i goes from t = (i + 1) / N towards
i / N. The last step, i = 0, returns x_hat itself and adds no noise. A stepper is given x_hat only,
so after clipping it moves along the eps that the clipped x_hat implies. Each is a frozen value
with `min_steps` and

    step(z_t, x_hat, *, i, num_steps, schedule, noise) -> z

where `i` may be traced and `noise` is standard normal, shaped like z_t (unread by DDIM).
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagen_video.diffusion import process
from imagen_video.diffusion.schedules import CosineSchedule

StepIndex = int | Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """The ancestral sampler: Eqs. 3 and 4 of Imagen Video (arXiv 2210.02303).

    z_s = mu_{s|t}(z_t, x_hat) + (sigma_{s|t})^(1 - gamma) (sigma_{t|s})^gamma eps, the two
    standard deviations being those of q(z_s | z_t, x) and q(z_t | z_s).

    Attributes:
      gamma: 0 for the lower bound on the variance, 1 for the upper. Not published for Imagen
        Video; 0.3 is the text-to-video value of Video Diffusion Models (arXiv 2204.03458).
    """

    gamma: float = 0.3
    min_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma: {self.gamma} must be in [0, 1]")

    def step(
        self,
        z_t: Float[Array, "*clip"],
        x_hat: Float[Array, "*clip"],
        *,
        i: StepIndex,
        num_steps: int,
        schedule: CosineSchedule,
        noise: Float[Array, "*clip"],
    ) -> Float[Array, "*clip"]:
        """Returns a draw of z at time i / num_steps; x_hat if i = 0."""
        logsnr_t = _logsnr(schedule, i + 1, num_steps)
        logsnr_s = _logsnr(schedule, i, num_steps)
        mean, std_small = process.posterior(z_t=z_t, x=x_hat, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        std_large = process.forward(z_s=z_t, logsnr_s=logsnr_s, logsnr_t=logsnr_t).std
        std = std_small ** (1 - self.gamma) * std_large**self.gamma
        return jnp.where(i == 0, x_hat, mean + std * noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """The deterministic sampler: z_s = alpha_s x_hat + sigma_s eps_hat (arXiv 2010.02502)."""

    min_steps: ClassVar[int] = 1

    def step(
        self,
        z_t: Float[Array, "*clip"],
        x_hat: Float[Array, "*clip"],
        *,
        i: StepIndex,
        num_steps: int,
        schedule: CosineSchedule,
        noise: Float[Array, "*clip"],
    ) -> Float[Array, "*clip"]:
        """Returns z at time i / num_steps; x_hat if i = 0."""
        del noise
        logsnr_t = _logsnr(schedule, i + 1, num_steps)
        logsnr_s = _logsnr(schedule, i, num_steps)
        z_s = process.ddim_step(z_t=z_t, x=x_hat, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        return jnp.where(i == 0, x_hat, z_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticDistilled:
    """The N-step stochastic sampler for distilled models: two grid steps down, one back up.

    From t = (i + 1) / N a DDIM step of double length reaches s = (i - 1) / N, then noise of
    q(z_m | z_s) leads back to m = i / N. Meng et al., arXiv 2210.03142, as Imagen Video, section
    2.7, uses it; the model must have been distilled for jumps of 2 / N.
    """

    min_steps: ClassVar[int] = 2

    def step(
        self,
        z_t: Float[Array, "*clip"],
        x_hat: Float[Array, "*clip"],
        *,
        i: StepIndex,
        num_steps: int,
        schedule: CosineSchedule,
        noise: Float[Array, "*clip"],
    ) -> Float[Array, "*clip"]:
        """Returns a draw of z at time i / num_steps; x_hat if i = 0."""
        logsnr_t = _logsnr(schedule, i + 1, num_steps)
        logsnr_m = _logsnr(schedule, i, num_steps)
        logsnr_s = _logsnr(schedule, jnp.maximum(i - 1, 0), num_steps)
        z_s = process.ddim_step(z_t=z_t, x=x_hat, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        z_m = process.forward(z_s=z_s, logsnr_s=logsnr_s, logsnr_t=logsnr_m).sample(noise)
        return jnp.where(i == 0, x_hat, z_m)


Stepper = Ancestral | DDIM | StochasticDistilled


def _logsnr(schedule: CosineSchedule, i: StepIndex, num_steps: int) -> Float[Array, ""]:
    """log-SNR at grid time i / num_steps."""
    return schedule(jnp.asarray(i / num_steps))
