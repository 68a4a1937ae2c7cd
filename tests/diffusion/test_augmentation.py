"""Conditioning augmentation: units and the noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video import records
from imagen_video.diffusion import augmentation
from imagen_video.diffusion.augmentation import AugmentationLevel
from imagen_video.diffusion.parameterization import alpha_sigma


@pytest.mark.parametrize(
    ("level", "logsnr", "alpha", "sigma"),
    [
        (AugmentationLevel(snr=3.0), 1.0986123, 0.8660254, 0.5),
        (AugmentationLevel(snr=5.0), 1.6094379, 0.9128709, 0.4082483),
        (AugmentationLevel(logsnr=3.0), 3.0, 0.9759990, 0.2177748),
        (AugmentationLevel(logsnr=5.0), 5.0, 0.9966480, 0.0818098),
    ],
)
def test_units(level, logsnr, alpha, sigma):
    np.testing.assert_allclose(level.logsnr, logsnr, atol=1e-7)
    with jax.enable_x64(True):
        np.testing.assert_allclose(alpha_sigma(level.logsnr), [alpha, sigma], atol=1e-7)
    np.testing.assert_allclose(level.broadcast(4), np.full(4, logsnr), rtol=1e-6)


def test_record_keeps_the_logsnr_only():
    level = AugmentationLevel(snr=3.0)
    assert level.snr is None
    assert level == AugmentationLevel(logsnr=float(np.log(3.0)))
    assert records.from_dict(AugmentationLevel, records.to_dict(level)) == level
    assert records.from_dict(AugmentationLevel, {"snr": 3}) == level
    assert dataclasses.replace(level, logsnr=2.0).logsnr == 2.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one"),
        ({"logsnr": 1.0, "snr": 3.0}, "exactly one"),
        ({"snr": 0.0}, "snr: 0.0 must be positive"),
        ({"snr": -3.0}, "snr: -3.0 must be positive"),
        ({"logsnr": float("inf")}, "logsnr: inf must be finite"),
    ],
)
def test_rejects(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentationLevel(**fields)


def test_augment_is_the_forward_process_at_that_level():
    rng = np.random.default_rng(0)
    low_res, eps = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 2, 3, 4, 4, 3)))
    level = AugmentationLevel(snr=3.0)
    got = augmentation.augment(low_res, eps=eps, logsnr=level.broadcast(2))
    np.testing.assert_allclose(got, np.sqrt(0.75) * low_res + 0.5 * eps, atol=1e-6)
    per_frame = augmentation.augment(low_res, eps=eps, logsnr=jnp.full((2, 3), level.logsnr))
    np.testing.assert_allclose(got, per_frame, atol=1e-7)
