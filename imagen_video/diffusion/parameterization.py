"""One noisy clip, four names for what is in it: x, eps, v, and z_t itself.

    z_t = alpha_t x + sigma_t eps        v = alpha_t eps - sigma_t x
    alpha_t^2 = sigmoid(logsnr_t)        sigma_t^2 = sigmoid(-logsnr_t)

so (z_t, v) is (x, eps) turned by the angle arctan(sigma_t / alpha_t), and any two of the four give
the other two. Imagen Video, arXiv 2210.02303, sections 2.1 and 2.4; Salimans & Ho, arXiv
2202.00512, appendix D. A log-SNR is a scalar, one per sample [b] or one per frame [b f].
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from imagen_video.array_types import LogSNR

Parameterization = Literal["v", "eps", "x"]
AnyLogSNR = Float[ArrayLike, ""] | LogSNR


def expand(logsnr: AnyLogSNR, like: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `logsnr` with trailing axes of size 1, so that it broadcasts against `like`.

    Args:
      logsnr: scalar, [b] or [b f].
      like: the array it belongs to, for example [b f h w c].

    Raises:
      ValueError: the shape of `logsnr` is not the beginning of that of `like`.
    """
    logsnr = jnp.asarray(logsnr)
    if logsnr.shape != like.shape[: logsnr.ndim]:
        raise ValueError(f"logsnr: shape {logsnr.shape} does not lead shape {like.shape}")
    return logsnr.reshape(logsnr.shape + (1,) * (like.ndim - logsnr.ndim))


def alpha_sigma(
    logsnr: Float[ArrayLike, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns (alpha, sigma), both in (0, 1), with alpha^2 + sigma^2 = 1 (variance preserving)."""
    logsnr = jnp.asarray(logsnr)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def predict_x_from_v(
    *, v: Float[Array, "*clip"], z_t: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns x = alpha_t z_t - sigma_t v."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    return alpha_t * z_t - sigma_t * v


def predict_x_from_eps(
    *, eps: Float[Array, "*clip"], z_t: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns x = (z_t - sigma_t eps) / alpha_t; errors grow as 1 / alpha_t (2e4 at t = 1)."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    return (z_t - sigma_t * eps) / alpha_t


def predict_eps_from_v(
    *, v: Float[Array, "*clip"], z_t: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns eps = sigma_t z_t + alpha_t v."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    return sigma_t * z_t + alpha_t * v


def predict_eps_from_x(
    *, x: Float[Array, "*clip"], z_t: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns eps = (z_t - alpha_t x) / sigma_t; errors grow as 1 / sigma_t (2e4 at t = 0)."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    return (z_t - alpha_t * x) / sigma_t


def predict_v_from_x(
    *, x: Float[Array, "*clip"], z_t: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns v = (alpha_t z_t - x) / sigma_t; errors grow as 1 / sigma_t (2e4 at t = 0)."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    return (alpha_t * z_t - x) / sigma_t


def predict_v_from_eps(
    *, eps: Float[Array, "*clip"], z_t: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns v = (eps - sigma_t z_t) / alpha_t; errors grow as 1 / alpha_t (2e4 at t = 1)."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    return (eps - sigma_t * z_t) / alpha_t


def predict_v_from_x_and_eps(
    *, x: Float[Array, "*clip"], eps: Float[Array, "*clip"], logsnr_t: AnyLogSNR
) -> Float[Array, "*clip"]:
    """Returns v = alpha_t eps - sigma_t x, the training target of a v-model."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, x))
    return alpha_t * eps - sigma_t * x


def predict_x(
    prediction: Float[Array, "*clip"],
    *,
    z_t: Float[Array, "*clip"],
    logsnr_t: AnyLogSNR,
    parameterization: Parameterization,
) -> Float[Array, "*clip"]:
    """Returns x_hat from what a network predicts: v_hat, eps_hat, or x_hat itself."""
    match parameterization:
        case "v":
            return predict_x_from_v(v=prediction, z_t=z_t, logsnr_t=logsnr_t)
        case "eps":
            return predict_x_from_eps(eps=prediction, z_t=z_t, logsnr_t=logsnr_t)
        case "x":
            return prediction
    raise ValueError(f"parameterization: {parameterization!r} is not one of 'v', 'eps', 'x'")


def prediction_of_x(
    x: Float[Array, "*clip"],
    *,
    z_t: Float[Array, "*clip"],
    logsnr_t: AnyLogSNR,
    parameterization: Parameterization,
) -> Float[Array, "*clip"]:
    """Returns what a network predicts if it predicts x: the inverse of `predict_x`."""
    match parameterization:
        case "v":
            return predict_v_from_x(x=x, z_t=z_t, logsnr_t=logsnr_t)
        case "eps":
            return predict_eps_from_x(x=x, z_t=z_t, logsnr_t=logsnr_t)
        case "x":
            return x
    raise ValueError(f"parameterization: {parameterization!r} is not one of 'v', 'eps', 'x'")
