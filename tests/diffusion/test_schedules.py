"""The cosine schedule against its closed form, in float64 and float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.diffusion.parameterization import alpha_sigma
from imagen_video.diffusion.schedules import CosineSchedule

# t, logsnr, alpha, sigma: float64, from -2 log tan(a t + b) with ends at +-20.
TABLE = [
    (0.0, 20.0, 0.9999999990, 0.0000453999),
    (0.1, 3.6849899867, 0.9876826583, 0.1564703377),
    (0.25, 1.7626187666, 0.9238708454, 0.3827044043),
    (1 / 3, 1.0985423915, 0.8660178370, 0.5000131058),
    (0.5, 0.0, 0.7071067812, 0.7071067812),
    (0.75, -1.7626187666, 0.3827044043, 0.9238708454),
    (0.9, -3.6849899867, 0.1564703377, 0.9876826583),
    (1.0, -20.0, 0.0000453999, 0.9999999990),
]


def naive_logsnr(t: np.ndarray, *, logsnr_min: float = -20.0, logsnr_max: float = 20.0):
    b = np.arctan(np.exp(-logsnr_max / 2))
    a = np.arctan(np.exp(-logsnr_min / 2)) - b
    return -2 * np.log(np.tan(a * t + b))


@pytest.mark.parametrize(("t", "logsnr", "alpha", "sigma"), TABLE)
def test_table_in_float64(t, logsnr, alpha, sigma):
    with jax.enable_x64(True):
        got = CosineSchedule()(t)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, logsnr, atol=1e-9)
        np.testing.assert_allclose(jnp.stack(alpha_sigma(got)), [alpha, sigma], atol=1e-10)


@pytest.mark.parametrize("ends", [(-20.0, 20.0), (-9.0, 12.5)])
def test_float32_keeps_its_precision_at_both_ends(ends):
    t = np.linspace(0, 1, 20001, dtype=np.float32)
    schedule = CosineSchedule(logsnr_min=ends[0], logsnr_max=ends[1])
    truth = naive_logsnr(t.astype(np.float64), logsnr_min=ends[0], logsnr_max=ends[1])
    got = jax.jit(schedule)(t)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("t", "in_float64", "tangent"), [(1.0, -20.0, -20.0011), (0.999, -12.85547, -12.85551)]
)
def test_float32_is_better_than_the_tangent_near_pure_noise(t, in_float64, tangent):
    with jax.enable_x64(True):
        np.testing.assert_allclose(CosineSchedule()(t), in_float64, atol=1e-6)
    t = np.float32(t)
    truth = naive_logsnr(t.astype(np.float64))  # of the rounded t: at 0.999 lower by 2.5e-5
    np.testing.assert_allclose(CosineSchedule()(t), truth, rtol=1e-7)
    # Negative control: -2 log tan(a t + b) as it stands.
    a, b = np.float32(1.5707055269354342), np.float32(4.539992973129278e-05)
    found = -2 * np.log(np.tan(a * t + b))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, tangent, rtol=5e-7)
    assert abs(found - truth) > 5e-7 * abs(truth)


def test_decreases_strictly_and_is_antisymmetric():
    t = np.linspace(0, 1, 2**13 + 1, dtype=np.float32)  # t and 1 - t are both exact
    logsnr = np.asarray(CosineSchedule()(t))
    assert np.all(np.diff(logsnr) < 0)
    np.testing.assert_allclose(logsnr, -logsnr[::-1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ends", [(-20.0, 20.0), (-9.0, 12.5)])
def test_inverse(ends):
    schedule = CosineSchedule(logsnr_min=ends[0], logsnr_max=ends[1])
    t = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(schedule.inverse(schedule(t)), t, atol=1e-6)
    outside = jnp.asarray([ends[1] + 1, ends[0] - 1])
    np.testing.assert_array_equal(schedule.inverse(outside), [0, 1])


def test_inverse_at_the_papers_augmentation_levels():
    with jax.enable_x64(True):
        logsnr = jnp.asarray([math.log(3), math.log(5), 3, 5])
        t = CosineSchedule().inverse(logsnr)
    np.testing.assert_allclose(t, [0.3333, 0.2677, 0.1398, 0.0521], atol=1e-4)


@pytest.mark.parametrize(
    ("t", "unclipped", "clipping"),
    [(0.25, 1.7627471740, 1.284e-4), (1 / 3, 1.0986122887, 6.99e-5), (0.5, 0.0, 0.0)],
)
def test_is_the_cosine_whose_ends_are_clipped(t, unclipped, clipping):
    """Where its angle is pi t / 2 it is -2 log tan(pi t / 2), ln 3 at 1/3; at t itself, less."""
    a, b = 1.5707055269354342, 4.539992973129278e-05
    with jax.enable_x64(True):
        at_angle, at_time = CosineSchedule()((np.pi * t / 2 - b) / a), CosineSchedule()(t)
        np.testing.assert_allclose(at_angle, unclipped, atol=1e-10)
        np.testing.assert_allclose(unclipped - at_time, clipping, atol=1e-7)


@pytest.mark.parametrize(("t", "with_offset"), [(0.25, 1.7113566202), (0.5, -0.0246268828)])
def test_has_no_offset(t, with_offset):
    """Nichol & Dhariwal's schedule, with s = 0.008, is another."""
    with jax.enable_x64(True):
        assert 0.02 < CosineSchedule()(t) - with_offset < 0.06


def test_rejects_reversed_ends():
    with pytest.raises(ValueError, match=r"logsnr_min: 3.0 must be less than logsnr_max 3.0"):
        CosineSchedule(logsnr_min=3.0, logsnr_max=3.0)
    with pytest.raises(ValueError, match=r"logsnr_max inf, both from -20\.0 to 20\.0"):
        CosineSchedule(logsnr_max=math.inf)
