"""Resampling against jax.image.resize and by its properties; numpy and jax alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video import resample

SIZES = [
    ((24, 40), (12, 20)),
    ((24, 40), (48, 80)),
    ((48, 80), (24, 40)),
    ((12, 20), (48, 80)),
    ((24, 40), (17, 53)),
    ((7, 5), (5, 7)),
    ((24, 40), (24, 20)),
    ((6, 10), (1, 1)),
    ((1, 2), (3, 6)),
]


def clip(frames=3, height=24, width=40, *, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (2, frames, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_resize_equals_jax_image_resize(size, new_size):
    x = clip(height=size[0], width=size[1])
    shape = (2, 3, *new_size, 3)
    with jax.enable_x64(True):
        truth = jax.image.resize(x.astype(np.float64), shape, "bilinear", antialias=True)
    truth = np.asarray(truth)
    of_numpy = resample.resize(x, height=new_size[0], width=new_size[1])
    of_jax = jax.jit(lambda x: resample.resize(x, height=new_size[0], width=new_size[1]))(x)
    assert isinstance(of_numpy, np.ndarray) and isinstance(of_jax, jax.Array)
    assert of_numpy.dtype == of_jax.dtype == np.float32
    np.testing.assert_allclose(of_numpy, truth, atol=1e-6)
    np.testing.assert_allclose(of_jax, truth, atol=1e-6)
    if new_size[0] < size[0]:
        aliased = jax.image.resize(x, shape, "bilinear", antialias=False)
        assert np.abs(aliased - truth).max() > 1e-2


@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_filter_matrix_is_an_average(size, new_size):
    for old, new in zip(size, new_size):
        weights = resample.filter_matrix(old, new)
        assert weights.shape == (new, old) and np.all(weights >= 0)
        np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)  # mirror symmetry


def test_halving_a_ramp_and_a_checkerboard():
    ramp = np.broadcast_to(np.linspace(-1, 1, 40, dtype=np.float32)[:, None], (1, 1, 24, 40, 1))
    half = resample.resize(np.ascontiguousarray(ramp), height=24, width=20)
    centres = np.interp(np.arange(20) * 2 + 0.5, np.arange(40), np.linspace(-1, 1, 40))
    np.testing.assert_allclose(half[0, 0, 0, 1:-1, 0], centres[1:-1], atol=1e-6)
    board = (-1.0) ** np.add.outer(np.arange(24), np.arange(40)).astype(np.float32)
    halved = resample.resize(board[None, None, :, :, None], height=12, width=20)
    assert np.abs(halved[0, 0, 1:-1, 1:-1]).max() < 1e-6  # aliasing would keep it at +-1


def test_same_size_is_untouched():
    x = clip()
    assert resample.resize(x, height=24, width=40) is x


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_fill_frames(kind):
    x = kind(clip(frames=4))
    repeated = resample.fill_frames(x, frames=8, fill="repeat")
    np.testing.assert_array_equal(repeated, np.repeat(x, 2, axis=1))
    blank = resample.fill_frames(x, frames=12, fill="blank")
    assert type(blank) is type(repeated) is type(x)
    np.testing.assert_array_equal(blank[:, ::3], x)
    np.testing.assert_array_equal(blank[:, 1::3], 0)
    np.testing.assert_array_equal(blank[:, 2::3], 0)
    for filled in (repeated, blank):
        np.testing.assert_array_equal(resample.skip_frames(filled, frames=4), x)
    np.testing.assert_array_equal(resample.fill_frames(x, frames=4, fill="blank"), x)


@pytest.mark.parametrize("fill", ["repeat", "blank"])
def test_upsample(fill):
    low_res = clip(frames=2, height=6, width=10)
    got = resample.upsample(low_res, frames=4, height=24, width=40, fill=fill)
    compiled = jax.jit(lambda x: resample.upsample(x, frames=4, height=24, width=40, fill=fill))(
        low_res
    )
    np.testing.assert_allclose(got, compiled, atol=1e-6)
    frames = jax.image.resize(low_res, (2, 2, 24, 40, 3), "bilinear")
    np.testing.assert_allclose(got[:, ::2], frames, atol=1e-6)
    np.testing.assert_array_equal(got[:, 1::2], got[:, ::2] if fill == "repeat" else 0)
    assert np.abs(got).max() <= 1


def test_downsample_skips_then_resizes():
    x = clip(frames=8)
    got = resample.downsample(x, frames=2, height=6, width=10)
    truth = jax.image.resize(x[:, ::4], (2, 2, 6, 10, 3), "bilinear")
    np.testing.assert_allclose(got, truth, atol=1e-6)


def test_errors():
    x = clip(frames=6)
    with pytest.raises(ValueError, match="frames: 4 must be a divisor of the clip's 6 frames"):
        resample.skip_frames(x, frames=4)
    with pytest.raises(ValueError, match="frames: 9 must be a multiple of the clip's 6 frames"):
        resample.fill_frames(x, frames=9, fill="repeat")
    with pytest.raises(ValueError, match="frames: 3 must be a multiple"):
        resample.upsample(x, frames=3, height=24, width=40, fill="blank")


def test_rejects_an_unknown_fill():
    with pytest.raises((ValueError, TypeError), match="fill"):  # TypeError: runtime type checks
        resample.fill_frames(clip(frames=2), frames=4, fill="zeros")
