"""A network that adds to its low-resolution input: exact where the data are as it assumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.diffusion.parameterization import predict_v_from_x_and_eps, predict_x_from_v
from imagen_video.diffusion.process import diffuse
from imagen_video.diffusion.residual import predict_v_from_residual

SHAPE = (1, 1, 400, 500, 1)


@pytest.mark.parametrize("logsnr_t", [-19.0, -4.0, 0.0, 5.0, 15.0])
@pytest.mark.parametrize("low_res_logsnr", [-1.0, 3.0, 20.0])
def test_of_gaussian_data_the_rest_is_uncorrelated_noise_of_variance_one(logsnr_t, low_res_logsnr):
    """Then r_hat = 0 is the best denoiser: nothing linear is left to learn."""
    error = 0.2
    x_key, eps_key, low_res_key = jax.random.split(jax.random.key(0), 3)
    a = np.sqrt(1 / (1 + np.exp(-low_res_logsnr)))
    low_res = jax.random.normal(low_res_key, SHAPE)
    e = np.sqrt(1 - a**2 + a**2 * error**2)
    x, eps = a * low_res + e * jax.random.normal(x_key, SHAPE), jax.random.normal(eps_key, SHAPE)
    levels = {"logsnr_t": jnp.array([logsnr_t])}
    z_t = diffuse(x=x, eps=eps, **levels)
    given = dict(
        z_t=z_t, low_res=low_res, low_res_logsnr=jnp.array([low_res_logsnr]), error=error, **levels
    )
    v = predict_v_from_x_and_eps(x=x, eps=eps, **levels)
    mean = predict_v_from_residual(jnp.zeros(SHAPE), **given)
    scale = predict_v_from_residual(jnp.ones(SHAPE), **given) - mean
    r = (v - mean) / scale
    np.testing.assert_allclose(jnp.std(r), 1.0, rtol=0.01)
    for known in (z_t, low_res):
        assert abs(jnp.corrcoef(r.ravel(), known.ravel())[0, 1]) < 0.01


def test_at_pure_noise_an_untrained_network_answers_with_the_low_res_clip():
    low_res = jax.random.uniform(jax.random.key(0), (2, 3, 4, 5, 3), minval=-1.0)
    z_t = jax.random.normal(jax.random.key(1), low_res.shape)
    logsnr_t = jnp.full((2,), -20.0)
    v = predict_v_from_residual(
        jnp.zeros_like(z_t),
        z_t=z_t,
        logsnr_t=logsnr_t,
        low_res=low_res,
        low_res_logsnr=jnp.full((2, 3), 20.0),
        error=0.1,
    )
    x = predict_x_from_v(v=v, z_t=z_t, logsnr_t=logsnr_t)
    np.testing.assert_allclose(x, low_res, atol=1e-4)


def test_without_knowledge_it_is_v_prediction():
    r_hat, z_t = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 5, 3))
    v = predict_v_from_residual(
        r_hat,
        z_t=z_t,
        logsnr_t=jnp.array([-2.0, 3.0]),
        low_res=jnp.zeros_like(z_t),
        low_res_logsnr=jnp.array([0.0, 1.0]),
        error=1.0,
    )
    np.testing.assert_allclose(v, r_hat, atol=1e-6)
