"""Fréchet distance between two sets of features, the distance of FID and FVD (arXiv 1706.08500)."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Tells how far apart two sets of features lie, as if each were normally distributed.

    The squared 2-Wasserstein distance of the normal distributions with the sets' means mu and
    covariances S, these with n - 1 in the denominator as in the published FID and FVD:

        |mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    It has the features' unit squared. Of finite sets it is too large on average, the more so the
    fewer rows and the more features: compare only values of equal numbers of rows.

    Args:
      a: features [n d], real and finite, n >= 2; computed in float64.
      b: features [m d], likewise; m need not be n.

    Returns:
      The distance, >= 0.

    Raises:
      ValueError: a set is not [n d] of finite numbers with n >= 2 and d >= 1, or the two differ
        in d.
    """
    a, b = _features("a", a), _features("b", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: has {b.shape[1]} features a row, a has {a.shape[1]}")
    shift = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = _covariance(a), _covariance(b)
    # S_a S_b has the eigenvalues of this product, which is symmetric, so that its are real.
    root_a = _root(cov_a)
    values = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace_of_root = np.sqrt(np.maximum(values, 0.0)).sum()  # rounding makes zeros negative
    distance = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_of_root
    return max(0.0, float(distance))


def _features(name: str, values: ArrayLike) -> Float[np.ndarray, "n d"]:
    features = np.asarray(values, np.float64)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name}: shape {features.shape} is not [n d], a row of features a sample")
    if len(features) < 2:
        raise ValueError(f"{name}: {len(features)} rows; a covariance needs at least 2")
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise ValueError(f"{name}: {features[row, column]} at row {row}, feature {column}")
    return features


def _covariance(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    centred = features - features.mean(axis=0)
    return centred.T @ centred / (len(features) - 1)


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a symmetric matrix with eigenvalues >= 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
