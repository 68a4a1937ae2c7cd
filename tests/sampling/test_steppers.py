"""Steppers against the standard deviations that theory gives, on grids and on Gaussian data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video import records
from imagen_video.diffusion import parameterization
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.sampling.steppers import DDIM, Ancestral, StochasticDistilled

SCHEDULE = CosineSchedule()
DATA_STD = 0.5
STEPPERS = [DDIM(), Ancestral(gamma=0.3), StochasticDistilled()]


def coefficients(stepper, *, i, num_steps: int, x_of_z):
    """(of z, of noise) in the next z, where x_hat = x_of_z(logsnr_t) z: read off by unit inputs."""
    gain = x_of_z(SCHEDULE(jnp.asarray((i + 1) / num_steps)))
    step = functools.partial(stepper.step, i=i, num_steps=num_steps, schedule=SCHEDULE)
    zero, one = jnp.zeros(()), jnp.ones(())
    return step(one, gain * one, noise=zero), step(zero, gain * zero, noise=one)


def optimal_gain(logsnr_t):
    """E[x | z_t] = gain z_t for x ~ N(0, DATA_STD^2)."""
    alpha_t, sigma_t = parameterization.alpha_sigma(logsnr_t)
    return alpha_t * DATA_STD**2 / (alpha_t**2 * DATA_STD**2 + sigma_t**2)


def output_std(stepper, num_steps: int) -> float:
    """Standard deviation of what the stepper makes of z_1 ~ N(0, 1), exactly: all is linear."""
    of_z, of_noise = jax.jit(
        jax.vmap(lambda i: coefficients(stepper, i=i, num_steps=num_steps, x_of_z=optimal_gain))
    )(jnp.arange(num_steps))
    variance = 1.0
    for i in reversed(range(num_steps)):
        variance = float(of_z[i]) ** 2 * variance + float(of_noise[i]) ** 2
    return variance**0.5


GAUSSIAN = {
    DDIM(): [0.41137, 0.48809, 0.49700, 0.49925],
    StochasticDistilled(): [0.33420, 0.47040, 0.49228, 0.49805],
    Ancestral(gamma=0.0): [0.37114, 0.47394, 0.49268, 0.49809],
    Ancestral(gamma=0.3): [0.40840, 0.48304, 0.49533, 0.49879],
    Ancestral(gamma=1.0): [0.52538, 0.50669, 0.50177, 0.50045],
}


@pytest.mark.parametrize("stepper", GAUSSIAN, ids=repr)
def test_std_on_gaussian_data(stepper):
    for num_steps, std in zip((8, 64, 256, 1024), GAUSSIAN[stepper]):
        with jax.enable_x64(True):
            np.testing.assert_allclose(output_std(stepper, num_steps), std, atol=6e-6)
    np.testing.assert_allclose(output_std(stepper, 1024), std, atol=1e-4)  # float32


def test_optimal_gain():
    np.testing.assert_allclose(optimal_gain(jnp.asarray(0.0)), 0.2828427125, rtol=1e-6)


@pytest.mark.parametrize(
    ("gamma", "std"),
    [
        (0.0, 0.3483251559),
        (0.1, 0.3703795454),
        (0.3, 0.4187658930),
        (0.5, 0.4734734283),
        (1.0, 0.6435856944),
    ],
)
def test_ancestral_std_from_half_to_quarter(gamma, std):
    with jax.enable_x64(True):
        of_z, of_noise = coefficients(
            Ancestral(gamma=gamma), i=1, num_steps=4, x_of_z=lambda _: jnp.asarray(0.0)
        )
    np.testing.assert_allclose(of_noise, std, atol=1e-10)
    np.testing.assert_allclose(of_z, 0.2241974435, atol=1e-10)


@pytest.mark.parametrize(
    ("i", "gamma", "std"),
    [
        (7, 0.0, 0.9807786115),
        (7, 1.0, 0.9999999729),
        (1, 0.0, 0.1711468861),
        (1, 0.3, 0.2094763613),
        (1, 1.0, 0.3356776300),
    ],
)
def test_ancestral_std_of_eight_steps(i, gamma, std):
    with jax.enable_x64(True):
        _, of_noise = coefficients(
            Ancestral(gamma=gamma), i=i, num_steps=8, x_of_z=lambda _: jnp.asarray(0.0)
        )
    np.testing.assert_allclose(of_noise, std, atol=1e-10)


@pytest.mark.parametrize(
    ("i", "scale", "std"),
    [
        (7, 0.5098549047, 0.8602604118),
        (6, 0.6888380279, 0.7249152857),
        (5, 0.7857083045, 0.6185971712),
        (4, 0.8504365444, 0.5260776406),
        (3, 0.8999778602, 0.4359356043),
        (2, 0.9419769258, 0.3356776300),
        (1, 0.9807786380, 0.1951237126),
    ],
)
def test_stochastic_step_back(i, scale, std):
    """The double DDIM step lands on z_s = z_t-consistent; then z_m = scale z_s + std noise."""
    with jax.enable_x64(True):
        logsnr_t, logsnr_s = SCHEDULE((i + 1) / 8), SCHEDULE((i - 1) / 8)
        x, eps = 0.3, -1.2
        alpha_t, sigma_t = parameterization.alpha_sigma(logsnr_t)
        alpha_s, sigma_s = parameterization.alpha_sigma(logsnr_s)
        z_t = jnp.asarray(alpha_t * x + sigma_t * eps)
        step = functools.partial(
            StochasticDistilled().step,
            z_t,
            jnp.asarray(x),
            i=i,
            num_steps=8,
            schedule=SCHEDULE,
        )
        mean = step(noise=jnp.asarray(0.0))
        np.testing.assert_allclose(mean, scale * (alpha_s * x + sigma_s * eps), atol=2e-10)
        np.testing.assert_allclose(step(noise=jnp.asarray(1.0)) - mean, std, atol=1e-10)


@pytest.mark.parametrize("i", range(1, 8))
def test_stochastic_step_back_is_the_noise_of_eq_1(i):
    """sigma_{m|s}^2 = sin^2 m - (cos m / cos s)^2 sin^2 s = sin(m - s) sin(m + s) / cos^2 s."""
    b = np.arctan(np.exp(np.longdouble(-10)))
    quarter = np.arctan(np.longdouble(1))
    s, m = (b + (2 * quarter - 2 * b) * step / 8 for step in (i - 1, i))
    with jax.enable_x64(True):
        _, of_noise = coefficients(
            StochasticDistilled(), i=i, num_steps=8, x_of_z=lambda _: jnp.asarray(0.0)
        )
    truth = np.sqrt(np.sin(m - s) * np.sin(m + s)) / np.cos(s)
    np.testing.assert_allclose(of_noise, np.float64(truth), rtol=0, atol=1e-15)


@pytest.mark.parametrize("stepper", STEPPERS, ids=repr)
@pytest.mark.parametrize("num_steps", [2, 8, 256])
def test_last_step_returns_x_hat_and_the_others_follow_the_clipped_x(stepper, num_steps):
    rng = np.random.default_rng(0)
    z_t, x, noise = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 2, 2, 4, 4, 3)))
    x_hat = jnp.clip(3 * x, -1, 1)
    step = functools.partial(stepper.step, num_steps=num_steps, schedule=SCHEDULE, noise=noise)
    np.testing.assert_array_equal(step(z_t, x_hat, i=0), x_hat)
    traced = jax.jit(lambda i: step(z_t, x_hat, i=i))
    np.testing.assert_array_equal(traced(0), x_hat)
    for i in {1, num_steps - 1}:
        np.testing.assert_allclose(step(z_t, x_hat, i=i), traced(i), atol=1e-5)
        assert np.abs(traced(i) - x_hat).max() > 1e-2


def test_ddim_reads_no_noise_and_the_others_do():
    rng = np.random.default_rng(0)
    z_t, x_hat, noise = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(3, 1, 2, 4, 4, 3)))
    for stepper in STEPPERS:
        step = functools.partial(stepper.step, z_t, x_hat, i=3, num_steps=8, schedule=SCHEDULE)
        changed = np.abs(step(noise=noise) - step(noise=-noise)).max()
        assert (changed > 0.1) == (stepper != DDIM())


def test_ddim_with_a_perfect_denoiser_follows_the_true_path():
    """If x_hat is the true x, z_s is q's alpha_s x + sigma_s eps at every grid point."""
    rng = np.random.default_rng(0)
    x, eps = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 1, 2, 4, 4, 3)))
    for i in range(1, 16):
        t, s = SCHEDULE((i + 1) / 16), SCHEDULE(i / 16)
        alpha_t, sigma_t = parameterization.alpha_sigma(t)
        alpha_s, sigma_s = parameterization.alpha_sigma(s)
        z_s = DDIM().step(
            alpha_t * x + sigma_t * eps, x, i=i, num_steps=16, schedule=SCHEDULE, noise=eps
        )
        np.testing.assert_allclose(z_s, alpha_s * x + sigma_s * eps, atol=3e-6)


def test_records_and_errors():
    for stepper in STEPPERS:
        assert records.from_dict(type(stepper), records.to_dict(stepper)) == stepper
    for gamma in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"gamma: {gamma} must be in \[0, 1\]"):
            Ancestral(gamma=gamma)
