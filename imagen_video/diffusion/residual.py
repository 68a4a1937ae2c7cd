"""v from what a super-resolution network adds to its low-resolution input.

A clip is close to its resampled low-resolution version: before any training, let it be normal
around that version, x ~ N(u, e^2). The mean of v given z_t then has a closed form, and the network
is left to predict the rest in units of its standard deviation,

    v_hat = sigma_t (alpha_t (1 - e^2) z_t - u) / D + e / sqrt(D) r_hat
    D = sigma_t^2 + e^2 alpha_t^2

u = 0 and e = 1, what is known without a low-resolution clip, make this v_hat = r_hat: it is
v-prediction (Imagen Video, arXiv 2210.02303, section 2.4) about another mean. Our choice for small
networks and short training: an untrained stage already resizes its input, and what it learns is
the difference. The output is scaled as in arXiv 2206.00364, section 5, with u for a mean.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.array_types import LogSNR, Video
from imagen_video.diffusion.parameterization import alpha_sigma, expand


def predict_v_from_residual(
    r_hat: Float[Array, "b f h w c"],
    *,
    z_t: Video,
    logsnr_t: LogSNR,
    low_res: Video,
    low_res_logsnr: LogSNR,
    error: float,
) -> Float[Array, "b f h w c"]:
    """Returns v_hat.

    The low-res clip holds x with an error of its own and, at level a, the conditioning
    augmentation's noise: low_res = alpha_a (x + error n) + sigma_a n'. So u = alpha_a low_res and
    e^2 = sigma_a^2 + alpha_a^2 error^2, exact for x of unit variance and error 0.

    Args:
      r_hat: what the network predicts, of unit variance where the assumption holds.
      z_t: the noisy clip.
      logsnr_t: its log-SNR, [b] or [b f], nats.
      low_res: what the network is conditioned on, augmented and resampled to z_t's grid.
      low_res_logsnr: its augmentation's log-SNR, [b] or [b f], nats.
      error: root mean square difference of a clip and its resampled clean low-res version, in
        (0, 1].
    """
    logsnr_t, low_res_logsnr = expand(logsnr_t, z_t), expand(low_res_logsnr, z_t)
    (alpha, sigma), (alpha_a, _) = alpha_sigma(logsnr_t), alpha_sigma(low_res_logsnr)
    e2, D = _variances(logsnr_t=logsnr_t, low_res_logsnr=low_res_logsnr, error=error)
    u = alpha_a * low_res
    return sigma * (alpha * (1 - e2) * z_t - u) / D + jnp.sqrt(e2 / D) * r_hat


def residual_variance(*, logsnr_t: LogSNR, low_res_logsnr: LogSNR, error: float) -> LogSNR:
    """Returns e^2 / D, of which the mean squared error of v is that of r_hat times as much.

    Args:
      logsnr_t: [b] or [b f], nats.
      low_res_logsnr: of the same shape, nats.
      error: as in `predict_v_from_residual`.
    """
    e2, D = _variances(logsnr_t=logsnr_t, low_res_logsnr=low_res_logsnr, error=error)
    return e2 / D


def _variances(
    *, logsnr_t: Float[Array, "..."], low_res_logsnr: Float[Array, "..."], error: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns e^2 and D of log-SNRs that broadcast against each other."""
    alpha, sigma = alpha_sigma(logsnr_t)
    alpha_a, sigma_a = alpha_sigma(low_res_logsnr)
    e2 = sigma_a**2 + (alpha_a * error) ** 2
    return e2, sigma**2 + e2 * alpha**2
