"""Denoising losses: one squared error, weighted by a function of the log-SNR.

On a variance-preserving process x_hat - x = -sigma_t (v_hat - v) and eps_hat - eps =
alpha_t (v_hat - v), so all four losses are the v error times

    v_mse 1      eps_mse alpha_t^2      x_mse sigma_t^2      snr_trunc max(alpha_t^2, sigma_t^2)

which is x_mse times SNR + 1, SNR, 1 and max(SNR, 1). eps_mse is Eq. 2 of Imagen Video (arXiv
2210.02303). It gives weight 2e-9 at t = 1, so few-step distillation needs v_mse or snr_trunc
(Salimans & Ho, arXiv 2202.00512, section 4).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.array_types import LogSNR
from imagen_video.diffusion.parameterization import Parameterization, predict_v_from_x_and_eps

Loss = Literal["eps_mse", "v_mse", "x_mse", "snr_trunc"]


def log_weight(loss: Loss, logsnr: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the logarithm of the loss's weight on the squared v error; at most 0."""
    log_alpha2, log_sigma2 = jax.nn.log_sigmoid(logsnr), jax.nn.log_sigmoid(-logsnr)
    match loss:
        case "v_mse":
            return jnp.zeros_like(logsnr)
        case "eps_mse":
            return log_alpha2
        case "x_mse":
            return log_sigma2
        case "snr_trunc":
            return jnp.maximum(log_alpha2, log_sigma2)
    raise ValueError(f"loss: {loss!r} is not one of 'eps_mse', 'v_mse', 'x_mse', 'snr_trunc'")


def weighted_mse(
    prediction: Float[Array, "b f h w c"],
    target: Float[Array, "b f h w c"],
    *,
    logsnr_t: LogSNR,
    loss: Loss,
    parameterization: Parameterization = "v",
) -> LogSNR:
    """Returns the loss of each sample, or of each frame where logsnr_t is per frame.

    Args:
      prediction: v_hat, eps_hat or x_hat, as `parameterization` says; any float dtype.
      target: the v, eps or x that it should equal.
      logsnr_t: [b] or [b f], nats.
      loss: which error counts, whatever the network predicts.
      parameterization: what `prediction` and `target` are.

    Returns:
      float32 in the shape of logsnr_t: the weighted squared error, averaged over the other axes.
    """
    squared_error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    mse = jnp.mean(squared_error, axis=tuple(range(logsnr_t.ndim, prediction.ndim)))
    own_loss: Loss = f"{parameterization}_mse"
    return jnp.exp(log_weight(loss, logsnr_t) - log_weight(own_loss, logsnr_t)) * mse


def v_model_loss(
    v_hat: Float[Array, "b f h w c"],
    *,
    x: Float[Array, "b f h w c"],
    eps: Float[Array, "b f h w c"],
    logsnr_t: LogSNR,
    loss: Loss,
) -> LogSNR:
    """Returns the loss of a v-model that saw z_t = alpha_t x + sigma_t eps.

    Args:
      v_hat: the network's prediction.
      x: clean data in [-1, 1].
      eps: the standard normal noise in z_t.
      logsnr_t: [b] or [b f], nats.
      loss: which error counts; "eps_mse" is the paper's Eq. 2.

    Returns:
      float32 in the shape of logsnr_t.
    """
    v = predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t)
    return weighted_mse(v_hat, v, logsnr_t=logsnr_t, loss=loss)
