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
    # Negative control: the tangent itself in float32 is off by 1e-3 at t = 1.
    a, b = np.float32(1.5707055269354342), np.float32(4.539992973129278e-05)
    assert abs(-2 * np.log(np.tan(a * np.float32(1) + b)) + 20) > 5e-4


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


def test_is_the_clipped_cosine_without_offset():
    with jax.enable_x64(True):
        at_quarter = float(CosineSchedule()(0.25))
    unclipped = -2 * math.log(math.tan(math.pi / 8))
    assert math.isclose(unclipped, 1.7627471740, abs_tol=1e-9)
    assert 1e-4 < unclipped - at_quarter < 1.5e-4
    with_offset = 1.7113566202  # Nichol & Dhariwal's s = 0.008
    assert abs(at_quarter - with_offset) > 0.05


def test_rejects_reversed_ends():
    with pytest.raises(ValueError, match=r"logsnr_min: 3.0 must be less than logsnr_max 3.0"):
        CosineSchedule(logsnr_min=3.0, logsnr_max=3.0)
    with pytest.raises(ValueError, match=r"logsnr_max inf, both from -20\.0 to 20\.0"):
        CosineSchedule(logsnr_max=math.inf)
