"""The process against closed forms: DDPM's coefficients, the chain rule, Bayes, the v rotation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.diffusion import parameterization, process
from imagen_video.diffusion.schedules import CosineSchedule

PAIRS = [(0.25, 0.5), (0.0, 1.0), (0.875, 1.0), (0.0, 1 / 256), (0.5, 0.5 + 1 / 1024), (0.3, 0.9)]


def coefficients(logsnr_s, logsnr_t):
    """(coefficient of z_t, of x, std) of the posterior, read off by unit inputs."""
    zero, one = jnp.zeros((1,)), jnp.ones((1,))
    at = {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t}
    of_z = process.posterior(z_t=one, x=zero, **at)
    of_x = process.posterior(z_t=zero, x=one, **at)
    return float(of_z.mean[0]), float(of_x.mean[0]), float(of_z.std[0])


def test_ancestral_numbers():
    with jax.enable_x64(True):
        schedule = CosineSchedule()
        logsnr_s, logsnr_t = schedule(0.25), schedule(0.5)
        of_z, of_x, std_small = coefficients(logsnr_s, logsnr_t)
        forward = process.forward(z_s=jnp.ones(1), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    np.testing.assert_allclose(
        [of_z, of_x, std_small**2, float(forward.std[0]) ** 2],
        [0.2241974435, 0.7653393127, 0.1213304142, 0.4142025460],
        atol=1e-10,
    )


@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_equals_ddpm_written_in_alpha_bar(s, t):
    """Ho et al. 2020, Eqs. 6 and 7, with abar = alpha^2 and beta = 1 - abar_t / abar_s."""
    with jax.enable_x64(True):
        schedule = CosineSchedule()
        logsnr_s, logsnr_t = schedule(s), schedule(t)
        got = coefficients(logsnr_s, logsnr_t)
        forward = process.forward(z_s=jnp.ones(1), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    logsnr_s, logsnr_t = np.longdouble(logsnr_s), np.longdouble(logsnr_t)
    abar_s, abar_t = 1 / (1 + np.exp(-logsnr_s)), 1 / (1 + np.exp(-logsnr_t))
    one_minus_s, one_minus_t = 1 / (1 + np.exp(logsnr_s)), 1 / (1 + np.exp(logsnr_t))
    beta = (abar_s - abar_t) / abar_s
    expected = (
        np.sqrt(abar_t / abar_s) * one_minus_s / one_minus_t,
        np.sqrt(abar_s) * beta / one_minus_t,
        np.sqrt(beta * one_minus_s / one_minus_t),
    )
    np.testing.assert_allclose(got, np.asarray(expected, np.float64), rtol=1e-12)
    np.testing.assert_allclose(forward.std[0], float(np.sqrt(beta)), rtol=1e-12)
    np.testing.assert_allclose(forward.mean[0], float(np.sqrt(abar_t / abar_s)), rtol=1e-12)


@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_steps_compose_to_the_marginal(s, t):
    """q(z_s|x) then q(z_t|z_s) is q(z_t|x); q(z_t|x) then q(z_s|z_t,x) is q(z_s|x)."""
    with jax.enable_x64(True):
        schedule = CosineSchedule()
        logsnr_s, logsnr_t = schedule(s), schedule(t)
        x = jnp.full((1,), 0.7)
        at_s = process.marginal(x=x, logsnr_t=logsnr_s)
        at_t = process.marginal(x=x, logsnr_t=logsnr_t)
        forward = process.forward(z_s=at_s.mean, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        ratio = forward.mean / at_s.mean
        np.testing.assert_allclose(forward.mean, at_t.mean, rtol=1e-12)
        np.testing.assert_allclose(
            forward.std**2 + (ratio * at_s.std) ** 2, at_t.std**2, rtol=1e-12
        )
        posterior = process.posterior(z_t=at_t.mean, x=x, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        of_z, _, _ = coefficients(logsnr_s, logsnr_t)
        np.testing.assert_allclose(posterior.mean, at_s.mean, rtol=1e-12)
        np.testing.assert_allclose(
            posterior.std**2 + (of_z * at_t.std) ** 2, at_s.std**2, rtol=1e-12
        )


@pytest.mark.parametrize("steps", [8, 256, 1024])
def test_float32_is_accurate_over_the_whole_grid(steps):
    grid = np.arange(steps + 1) / steps

    def all_coefficients(dtype):
        logsnr = CosineSchedule()(jnp.asarray(grid, dtype))
        zero, one = jnp.zeros((1,), dtype), jnp.ones((1,), dtype)

        def at(logsnr_s, logsnr_t):
            given = {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t}
            small = process.posterior(z_t=one, x=zero, **given)
            large = process.forward(z_s=one, **given)
            of_x = process.posterior(z_t=zero, x=one, **given)
            return jnp.concatenate([*small, *large, of_x.mean])

        return np.asarray(jax.vmap(at)(logsnr[:-1], logsnr[1:]))

    single = all_coefficients(jnp.float32)
    with jax.enable_x64(True):
        double = all_coefficients(jnp.float64)
    assert single.dtype == np.float32 and double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=3e-4)  # std is sqrt of a difference of logsnr


def test_ddim_is_the_rotation_of_v():
    with jax.enable_x64(True):
        schedule = CosineSchedule()
        x, eps = jnp.asarray(0.3), jnp.asarray(-1.2)
        logsnr_s, logsnr_t = schedule(0.25), schedule(0.5)
        z_t = process.diffuse(x=x, eps=eps, logsnr_t=logsnr_t)
        v = parameterization.predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t)
        got = process.ddim_step(z_t=z_t, x=x, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        angle = np.arctan(np.exp(-logsnr_t / 2)) - np.arctan(np.exp(-logsnr_s / 2))
        np.testing.assert_allclose(angle, 0.3926763817, atol=1e-10)
        np.testing.assert_allclose(got, np.cos(angle) * z_t - np.sin(angle) * v, atol=1e-12)
        np.testing.assert_allclose(got, -0.1820840315, atol=1e-10)


@pytest.mark.parametrize("clipped", [True, False])
def test_ddim_from_half_to_a_quarter_turns_by_an_eighth_of_pi(clipped):
    """By a little less where the log-SNR ends at +-20; tan(pi / 8) is sqrt(2) - 1."""
    with jax.enable_x64(True):
        quarter = CosineSchedule()(0.25) if clipped else -2 * np.log(np.sqrt(2) - 1)
        ends = {"logsnr_s": quarter, "logsnr_t": jnp.asarray(0.0)}

        def landed(z_t, v):
            x = parameterization.predict_x_from_v(v=v, z_t=z_t, logsnr_t=ends["logsnr_t"])
            return process.ddim_step(z_t=z_t, x=x, **ends)

        zero, one = jnp.asarray(0.0), jnp.asarray(1.0)
        angle = np.arctan2(-landed(zero, one), landed(one, zero))
        np.testing.assert_allclose(np.hypot(landed(zero, one), landed(one, zero)), 1, rtol=1e-12)
    np.testing.assert_allclose(angle, 0.3926763817 if clipped else 0.3926990817, atol=1e-10)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
def test_ddim_to_the_same_time_is_the_identity_for_any_x(t):
    rng = np.random.default_rng(1)
    z_t, x = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 2, 3, 4, 4, 1)))
    logsnr_t = CosineSchedule()(t)
    for any_x in (x, jnp.clip(3 * x, -1, 1)):
        got = process.ddim_step(z_t=z_t, x=any_x, logsnr_s=logsnr_t, logsnr_t=logsnr_t)
        np.testing.assert_allclose(got, z_t, atol=2e-6)


def test_per_frame_levels_equal_frames_one_by_one():
    rng = np.random.default_rng(2)
    z_t, x, eps = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 2, 3, 4, 4, 1)))
    t = jnp.asarray(rng.uniform(0.2, 1, (2, 3)), jnp.float32)
    logsnr_t, logsnr_s = CosineSchedule()(t), CosineSchedule()(t - 0.1)
    together = process.posterior(z_t=z_t, x=x, logsnr_s=logsnr_s, logsnr_t=logsnr_t).sample(eps)
    for b in range(2):
        for f in range(3):
            frame = np.s_[b : b + 1, f : f + 1]
            alone = process.posterior(
                z_t=z_t[frame],
                x=x[frame],
                logsnr_s=logsnr_s[b, f],
                logsnr_t=logsnr_t[b, f],
            ).sample(eps[frame])
            np.testing.assert_allclose(together[frame], alone, atol=1e-6)
