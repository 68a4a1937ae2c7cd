"""The Gaussian diffusion process between clean data x and noise, for times s < t (s is cleaner).

    q(z_t | x)       N(alpha_t x, sigma_t^2)                                  Eq. 1, left
    q(z_t | z_s)     N((alpha_t / alpha_s) z_s, sigma_{t|s}^2)                Eq. 1, right
    q(z_s | z_t, x)  N(mu_{s|t}(z_t, x), sigma_{s|t}^2)                       Eq. 3

of Imagen Video, arXiv 2210.02303, section 2.1. Every function takes log-SNRs (scalar, [b] or
[b f]), requires logsnr_s >= logsnr_t, and stays accurate in float32 on all of [-20, 20]: ratios
are differences of softplus, and 1 - e^(logsnr_t - logsnr_s) is expm1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.diffusion.parameterization import (
    AnyLogSNR,
    alpha_sigma,
    expand,
    predict_eps_from_x,
)


class Gaussian(NamedTuple):
    """A normal distribution with independent entries.

    Attributes:
      mean: the shape of a clip.
      std: standard deviation, broadcastable against `mean`.
    """

    mean: Float[Array, "..."]
    std: Float[Array, "..."]

    def sample(self, eps: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns mean + std * eps, a draw if `eps` is standard normal, shaped like `mean`."""
        return self.mean + self.std * eps


def marginal(*, x: Float[Array, "*clip"], logsnr_t: AnyLogSNR) -> Gaussian:
    """Returns q(z_t | x) = N(alpha_t x, sigma_t^2): Eq. 1, left."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, x))
    return Gaussian(mean=alpha_t * x, std=sigma_t)


def diffuse(
    *, x: Float[Array, "*clip"], eps: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns z_t = alpha_t x + sigma_t eps, the draw from q(z_t | x) that noise `eps` makes."""
    return marginal(x=x, logsnr_t=logsnr_t).sample(eps)


def forward(*, z_s: Float[Array, "*clip"], logsnr_s: AnyLogSNR, logsnr_t: AnyLogSNR) -> Gaussian:
    """Returns q(z_t | z_s), s <= t: Eq. 1, right.

    mean (alpha_t / alpha_s) z_s, variance sigma_{t|s}^2 = (1 - e^(logsnr_t - logsnr_s)) sigma_t^2.
    """
    logsnr_s, logsnr_t = expand(logsnr_s, z_s), expand(logsnr_t, z_s)
    return Gaussian(
        mean=_alpha_ratio(logsnr_t, logsnr_s) * z_s,
        std=jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s) * jax.nn.sigmoid(-logsnr_t)),
    )


def posterior(
    *,
    z_t: Float[Array, "*clip"],
    x: Float[Array, "*clip"],
    logsnr_s: AnyLogSNR,
    logsnr_t: AnyLogSNR,
) -> Gaussian:
    """Returns q(z_s | z_t, x), s <= t: Eq. 3.

    With r = e^(logsnr_t - logsnr_s): mean r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x, variance
    (1 - r) sigma_s^2.
    """
    logsnr_s, logsnr_t = expand(logsnr_s, z_t), expand(logsnr_t, z_t)
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    one_minus_r = -jnp.expm1(logsnr_t - logsnr_s)
    # r alpha_s / alpha_t = (alpha_t / alpha_s) (sigma_s / sigma_t)^2, each factor within (0, 1].
    z_coefficient = _alpha_ratio(logsnr_t, logsnr_s) * _sigma_ratio(logsnr_s, logsnr_t) ** 2
    return Gaussian(
        mean=z_coefficient * z_t + one_minus_r * alpha_s * x,
        std=jnp.sqrt(one_minus_r) * sigma_s,
    )


def ddim_step(
    *,
    z_t: Float[Array, "*clip"],
    x: Float[Array, "*clip"],
    logsnr_s: AnyLogSNR,
    logsnr_t: AnyLogSNR,
) -> Float[Array, "*clip"]:
    """Returns z_s = alpha_s x + sigma_s eps with the eps that (z_t, x) imply: DDIM.

    Because eps is computed from the x given, a clipped x makes a consistent step, and s = t is the
    identity for any x. Song et al., arXiv 2010.02502, Eq. 12 with sigma = 0.
    """
    eps = predict_eps_from_x(x=x, z_t=z_t, logsnr_t=logsnr_t)
    return diffuse(x=x, eps=eps, logsnr_t=logsnr_s)


def x_of_ddim_step(
    *,
    z_s: Float[Array, "*clip"],
    z_t: Float[Array, "*clip"],
    logsnr_s: AnyLogSNR,
    logsnr_t: AnyLogSNR,
) -> Float[Array, "*clip"]:
    """Returns the x whose `ddim_step` leads from z_t to z_s; s < t, undefined for s = t.

    x = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t): Salimans & Ho,
    arXiv 2202.00512, appendix G.
    """
    logsnr_s, logsnr_t = expand(logsnr_s, z_t), expand(logsnr_t, z_t)
    ratio = _sigma_ratio(logsnr_s, logsnr_t)
    alpha_s, alpha_t = alpha_sigma(logsnr_s)[0], alpha_sigma(logsnr_t)[0]
    return (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)


def _alpha_ratio(logsnr_a: Float[Array, "..."], logsnr_b: Float[Array, "..."]) -> Array:
    """alpha_a / alpha_b, without the underflow of either."""
    return jnp.exp(0.5 * (jax.nn.softplus(-logsnr_b) - jax.nn.softplus(-logsnr_a)))


def _sigma_ratio(logsnr_a: Float[Array, "..."], logsnr_b: Float[Array, "..."]) -> Array:
    """sigma_a / sigma_b, without the underflow of either."""
    return _alpha_ratio(-logsnr_a, -logsnr_b)
