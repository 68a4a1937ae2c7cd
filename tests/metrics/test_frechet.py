"""Fréchet distance: closed forms, scipy's matrix root, and what a distance must satisfy."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import linalg

import imagen_video
from imagen_video.metrics.frechet import frechet_distance

D = 5


def with_moments(mean, covariance, *, n=40, seed=0):
    """Samples whose mean and covariance are exactly these: whitened, then coloured."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x.T)))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def random_features(seed, n=60):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + rng.normal(size=D)


def test_of_diagonal_gaussians_it_is_that_of_means_and_standard_deviations():
    rng = np.random.default_rng(1)
    mean_a, mean_b = rng.normal(size=(2, D))
    std_a, std_b = rng.uniform(0.1, 3.0, size=(2, D))
    a = with_moments(mean_a, np.diag(std_a**2), seed=2)
    b = with_moments(mean_b, np.diag(std_b**2), seed=3, n=70)
    expected = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_of_a_standard_normal_and_one_shifted_and_widened_by_one_it_is_two():
    """N(0, 1) and N(1, 4): 1 + (1 - 2)^2, with 4 a variance."""
    a, b = with_moments([0.0], [[1.0]]), with_moments([1.0], [[4.0]], seed=1)
    assert frechet_distance(a, b) == pytest.approx(2, rel=1e-12)


def test_of_any_gaussians_it_is_what_the_root_of_scipy_gives():
    for seed in range(5):
        a, b = random_features(seed), random_features(seed + 100, n=33)
        cov_a, cov_b = np.cov(a.T), np.cov(b.T)
        root = linalg.sqrtm(cov_a @ cov_b).real
        shift = a.mean(axis=0) - b.mean(axis=0)
        expected = shift @ shift + np.trace(cov_a + cov_b - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_it_is_symmetric_and_zero_between_a_set_and_itself():
    a, b = random_features(7), random_features(8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, b) > 0.1
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0.0, abs=1e-10)


def test_turning_or_moving_both_sets_alike_changes_nothing():
    a, b = random_features(9), random_features(10)
    turn, _ = np.linalg.qr(np.random.default_rng(11).normal(size=(D, D)))
    assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(
        frechet_distance(a, b), rel=1e-9
    )


def test_features_that_never_change_count_by_their_shift_alone():
    # Singular covariances, also such as fewer rows than features have.
    for a in (random_features(12), random_features(12, n=3)):
        a = np.concatenate([a, np.full((len(a), 1), 2.0)], axis=1)
        b = a + np.array([0, 0, 0, 0, 0, 0.5])
        assert frechet_distance(a, b) == pytest.approx(0.25, abs=1e-6)


def test_float32_and_lists_are_taken_in_float64():
    a, b = random_features(13), random_features(14)
    a32 = a.astype(np.float32)
    assert frechet_distance(a32, b.tolist()) == frechet_distance(a32.astype(np.float64), b)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(4), np.zeros((4, 2)), r"a: shape \(4,\)"),
        (np.zeros((4, 2)), np.zeros((4, 2, 1)), r"b: shape \(4, 2, 1\)"),
        (np.zeros((4, 0)), np.zeros((4, 0)), r"a: shape \(4, 0\)"),
        (np.zeros((4, 2)), np.zeros((4, 3)), "b: has 3 features a row, a has 2"),
        (np.zeros((4, 2)), np.zeros((1, 2)), "b: 1 rows"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), np.zeros((4, 2)), "a: nan at row 1, feature 0"),
        (np.zeros((4, 2)), np.array([[0.0, 1.0], [1.0, -np.inf]]), "b: -inf at row 1, feature 1"),
    ],
)
def test_what_is_no_pair_of_feature_sets_is_refused_by_name(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_the_package_exports_it_without_loading_jax():
    assert imagen_video.frechet_distance is frechet_distance
    code = (
        "import sys, imagen_video as iv;"
        "assert iv.frechet_distance([[0.0], [2.0]], [[1.0], [3.0]]) == 1;"
        "assert not {'jax', 'flax', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
