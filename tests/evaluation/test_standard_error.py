"""Mean and standard error: closed form, and the spread of means that it stands for."""

import numpy as np
import pytest

from imagen_video.evaluation.standard_error import mean_and_error


def test_mean_and_error_by_hand():
    assert mean_and_error([0.5]) == (0.5, None)
    mean, error = mean_and_error([1.0, 2.0, 3.0, 6.0])
    assert mean == 3.0 and error == pytest.approx(np.sqrt(14 / 3) / 2)


def test_the_error_is_how_far_means_are_spread():
    draws = np.random.default_rng(0).normal(size=(4000, 8))
    squares = [mean_and_error(row)[1] ** 2 for row in draws]
    assert np.mean(squares) == pytest.approx(draws.mean(axis=1).var(), rel=0.05)
