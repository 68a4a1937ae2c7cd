"""The average against its closed form in float64."""

import jax.numpy as jnp
import numpy as np

from imagen_video.training.ema import ema_decay_at, ema_update


def averaged(values, start, decay, first_update):
    ema = {"w": jnp.float32(start)}
    for n, value in enumerate(values):
        d = ema_decay_at(first_update + n, decay=decay)
        ema = ema_update(ema, {"w": jnp.float32(value)}, decay=d)
    return float(ema["w"])


def test_constant_decay_gives_the_geometric_sum():
    # After a million updates the ramp is over and the decay is 0.9.
    values = np.random.default_rng(0).normal(size=12)
    weights = 0.1 * 0.9 ** np.arange(11, -1, -1)
    wanted = 0.9**12 * 3.0 + (weights * values).sum()
    np.testing.assert_allclose(averaged(values, 3.0, 0.9, 1_000_000), wanted, rtol=1e-5)


def test_the_ramp_is_that_of_its_docstring():
    for updates, wanted in (
        (0, 0.1),
        (10, 11 / 20),
        (90, 91 / 100),
        (89_990, 0.9999),
        (10**6, 0.9999),
    ):
        np.testing.assert_allclose(ema_decay_at(updates, decay=0.9999), wanted, rtol=1e-6)


def test_the_ramp_forgets_the_start():
    # prod (1 + n) / (10 + n) over n < N telescopes to 9! / ((N + 1) ... (N + 9)).
    N = 30
    left = 362880 / np.prod(np.arange(N + 1, N + 10, dtype=np.float64))
    np.testing.assert_allclose(averaged([0.0] * N, 1e6, 0.9999, 0), 1e6 * left, rtol=1e-4)


def test_no_decay_is_the_parameters_themselves():
    assert averaged([1.0, 2.0, 5.0], 0.0, 0.0, 0) == 5.0
