"""PSNR: closed forms of known errors."""

import numpy as np
import pytest

from imagen_video.metrics.psnr import psnr

SHAPE = (2, 3, 4, 6, 3)


def clips(seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, SHAPE).astype(np.float32)


def test_an_even_error_has_the_ratio_of_the_range_to_it():
    truth = clips()
    error = np.array([0.02, 0.2]).reshape(2, 1, 1, 1, 1)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], SHAPE)
    np.testing.assert_allclose(psnr(truth + error * signs, truth), [40.0, 20.0], atol=1e-4)


def test_it_averages_squared_errors_over_the_whole_clip_and_over_no_other():
    truth = clips()
    ours = truth.copy()
    ours[0, 1] += 0.3  # one frame of three
    value = psnr(ours, truth)
    assert value[0] == pytest.approx(10 * np.log10(4 / (0.3**2 / 3)), abs=1e-4)
    assert value[1] == pytest.approx(58.92, abs=0.01)


def test_no_error_counts_as_that_of_rounding_to_256_levels():
    # Uniform over a step of 2 / 255 the squared error is (2 / 255)^2 / 12: drawn, not derived.
    rounding = np.random.default_rng(2).uniform(-1 / 255, 1 / 255, 10**6)
    expected = 10 * np.log10(4 / np.mean(rounding**2))
    assert psnr(clips(), clips()) == pytest.approx([expected] * 2, abs=0.01)
    assert psnr(clips() + 1e-5, clips()) == pytest.approx([expected] * 2, abs=0.01)


def test_what_is_too_bright_to_be_shown_is_no_error():
    white = np.ones(SHAPE, np.float32)
    np.testing.assert_array_equal(psnr(white * 3, white), psnr(white, white))
