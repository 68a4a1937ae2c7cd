"""Every loss against the plain error it names, for every kind of prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.diffusion import losses
from imagen_video.diffusion import parameterization as p
from imagen_video.diffusion.process import diffuse
from imagen_video.diffusion.schedules import CosineSchedule

LOSSES = ["eps_mse", "v_mse", "x_mse", "snr_trunc"]


def drawn(logsnr_shape):
    rng = np.random.default_rng(0)
    x, eps, v_hat = (jnp.asarray(a) for a in rng.normal(size=(3, 3, 4, 5, 6, 2)))
    return x, eps, v_hat, jnp.asarray(rng.uniform(-6, 6, logsnr_shape))


def plain_mse(loss, *, x, eps, v_hat, logsnr_t):
    """The definition: convert the prediction, subtract, square, average."""
    z_t = diffuse(x=x, eps=eps, logsnr_t=logsnr_t)
    axes = tuple(range(logsnr_t.ndim, 5))
    given = {"z_t": z_t, "logsnr_t": logsnr_t}
    x_mse = jnp.mean((p.predict_x_from_v(v=v_hat, **given) - x) ** 2, axes)
    eps_mse = jnp.mean((p.predict_eps_from_v(v=v_hat, **given) - eps) ** 2, axes)
    v = p.predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t)
    return {
        "x_mse": x_mse,
        "eps_mse": eps_mse,
        "v_mse": jnp.mean((v_hat - v) ** 2, axes),
        "snr_trunc": jnp.maximum(x_mse, eps_mse),
    }[loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("logsnr_shape", [(3,), (3, 4)])
def test_equals_its_definition(loss, logsnr_shape):
    with jax.enable_x64(True):
        x, eps, v_hat, logsnr_t = drawn(logsnr_shape)
        truth = plain_mse(loss, x=x, eps=eps, v_hat=v_hat, logsnr_t=logsnr_t)
    x, eps, v_hat, logsnr_t = (a.astype(np.float32) for a in (x, eps, v_hat, logsnr_t))
    got = losses.v_model_loss(v_hat, x=x, eps=eps, logsnr_t=logsnr_t, loss=loss)
    assert got.shape == logsnr_shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, truth, rtol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_same_loss_for_the_same_error_in_any_parameterization(loss):
    with jax.enable_x64(True):
        x, eps, v_hat, logsnr_t = drawn((3,))
        given = {"z_t": diffuse(x=x, eps=eps, logsnr_t=logsnr_t), "logsnr_t": logsnr_t}
        predictions = {
            "v": (v_hat, p.predict_v_from_x_and_eps(x=x, eps=eps, logsnr_t=logsnr_t)),
            "eps": (p.predict_eps_from_v(v=v_hat, **given), eps),
            "x": (p.predict_x_from_v(v=v_hat, **given), x),
        }
    got = {
        name: losses.weighted_mse(
            *(jnp.asarray(a, jnp.float32) for a in pair),
            logsnr_t=jnp.asarray(logsnr_t, jnp.float32),
            loss=loss,
            parameterization=name,
        )
        for name, pair in predictions.items()
    }
    np.testing.assert_allclose(got["eps"], got["v"], rtol=5e-4)
    np.testing.assert_allclose(got["x"], got["v"], rtol=5e-4)


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        ("eps_mse", [5.8276787592, 1, 0.1715949079]),
        ("v_mse", [6.8276787592, 2, 1.1715949079]),
        ("snr_trunc", [5.8276787592, 1, 1]),
        ("x_mse", [1, 1, 1]),
    ],
)
def test_weights_on_x_mse(loss, weights):
    with jax.enable_x64(True):
        logsnr = CosineSchedule()(jnp.asarray([0.25, 0.5, 0.75]))
        got = jnp.exp(losses.log_weight(loss, logsnr) - losses.log_weight("x_mse", logsnr))
    np.testing.assert_allclose(got, weights, rtol=1e-9)


def test_weights_at_pure_noise():
    """Eq. 2 hardly weighs t = 1; the losses for distillation do."""
    logsnr = CosineSchedule()(jnp.asarray(1.0))
    weight = {loss: float(jnp.exp(losses.log_weight(loss, logsnr))) for loss in LOSSES}
    np.testing.assert_allclose(weight["eps_mse"], np.exp(-20), rtol=1e-4)
    np.testing.assert_allclose([weight["v_mse"], weight["snr_trunc"]], 1, rtol=1e-6)


def test_bfloat16_predictions_are_compared_in_float32():
    ones = jnp.ones((1, 2, 3, 3, 1))
    got = losses.weighted_mse(
        ones.astype(jnp.bfloat16), ones * 1.001, logsnr_t=jnp.zeros(1), loss="v_mse"
    )
    np.testing.assert_allclose(got, 1e-6, rtol=1e-3)
