"""x, eps, v and z_t: every pair determines the other two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.diffusion import parameterization as p
from imagen_video.diffusion.process import diffuse
from imagen_video.diffusion.schedules import CosineSchedule


@pytest.mark.parametrize(
    ("t", "z", "v"),
    [(0.25, -0.1820840315, -1.2234563357), (0.5, -0.6363961031, -1.0606601718)],
)
def test_numbers(t, z, v):
    with jax.enable_x64(True):
        x, eps, logsnr_t = jnp.asarray(0.3), jnp.asarray(-1.2), CosineSchedule()(t)
        z_t = diffuse(x=x, eps=eps, logsnr_t=logsnr_t)
        np.testing.assert_allclose(z_t, z, atol=1e-10)
        got = p.predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t)
        np.testing.assert_allclose(got, v, atol=1e-10)


def drawn(logsnr_shape: tuple[int, ...]):
    rng = np.random.default_rng(0)
    x, eps = (jnp.asarray(a) for a in rng.normal(size=(2, 3, 4, 5, 6, 2)))
    logsnr_t = jnp.asarray(rng.uniform(-6, 6, logsnr_shape))
    return x, eps, logsnr_t


@pytest.mark.parametrize("logsnr_shape", [(), (3,), (3, 4)])
def test_every_conversion_recovers_the_truth(logsnr_shape):
    with jax.enable_x64(True):
        x, eps, logsnr_t = drawn(logsnr_shape)
        # By the definition, written with numpy: z_t = alpha x + sigma eps, v = alpha eps - sigma x.
        lead = np.reshape(logsnr_t, logsnr_shape + (1,) * (5 - len(logsnr_shape)))
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-lead))), np.sqrt(1 / (1 + np.exp(lead)))
        z_t, v = alpha * x + sigma * eps, alpha * eps - sigma * x
        given = {"z_t": z_t, "logsnr_t": logsnr_t}
        for got, truth in [
            (p.predict_x_from_v(v=v, **given), x),
            (p.predict_x_from_eps(eps=eps, **given), x),
            (p.predict_eps_from_v(v=v, **given), eps),
            (p.predict_eps_from_x(x=x, **given), eps),
            (p.predict_v_from_x(x=x, **given), v),
            (p.predict_v_from_eps(eps=eps, **given), v),
            (p.predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t), v),
            (p.predict_x(v, parameterization="v", **given), x),
            (p.predict_x(eps, parameterization="eps", **given), x),
            (p.predict_x(x, parameterization="x", **given), x),
        ]:
            np.testing.assert_allclose(got, truth, atol=1e-12)


def test_alpha_sigma_at_the_ends_in_float32():
    alpha, sigma = p.alpha_sigma(jnp.asarray([20.0, -20.0]))
    end = np.exp(-10) / np.sqrt(1 + np.exp(-20))
    np.testing.assert_allclose(sigma, [end, 1], rtol=1e-6)
    np.testing.assert_allclose(alpha, [1, end], rtol=1e-6)


def test_logsnr_of_each_frame_reaches_that_frame_only():
    z_t = jnp.ones((2, 3, 4, 4, 1))
    v = jnp.full_like(z_t, 0.5)
    logsnr = jnp.zeros((2, 3))
    base = p.predict_x_from_v(v=v, z_t=z_t, logsnr_t=logsnr)
    changed = p.predict_x_from_v(v=v, z_t=z_t, logsnr_t=logsnr.at[1, 2].set(3.0))
    differs = np.any(np.asarray(base != changed), axis=(2, 3, 4))
    np.testing.assert_array_equal(differs, [[False] * 3, [False, False, True]])


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 2)])
def test_expand_rejects_what_does_not_lead(shape):
    with pytest.raises(ValueError, match="logsnr: shape"):
        p.expand(jnp.zeros(shape), jnp.zeros((2, 3, 4, 4, 1)))
