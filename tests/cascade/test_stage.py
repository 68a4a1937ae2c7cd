"""A stage record, and the road from a low-resolution clip to what a stage is conditioned on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_cascade import BASE, SAMPLING, SSR1, TSR1

from imagen_video import records, resample
from imagen_video.cascade.stage import Grid, Stage, low_res_condition
from imagen_video.cascade.stage_sampler import make_conditioning
from imagen_video.diffusion.guidance import ConstantGuidance, GuidanceRange
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sampling.steppers import StochasticDistilled

# Twice the frames and twice the size, so that both are told apart.
BOTH = dataclasses.replace(TSR1, output=Grid(frames=8, height=8, width=16))
BLANK = dataclasses.replace(BOTH, fill="blank")


def clips(grid, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    shape = (batch, grid.frames, grid.height, grid.width, 3)
    x, eps = rng.uniform(-1, 1, shape), rng.normal(size=shape)
    return jnp.asarray(x, jnp.float32), jnp.asarray(eps, jnp.float32)


def noisy_and_large(x, eps, logsnr, height, width):
    """The first half of the road, in numpy and by jax's own resize."""
    logsnr = np.asarray(logsnr, np.float64).reshape(*logsnr.shape, *[1] * (5 - logsnr.ndim))
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    noisy = jnp.asarray(alpha * x + sigma * eps, jnp.float32)
    return np.asarray(jax.image.resize(noisy, (*x.shape[:2], height, width, 3), "bilinear"))


@pytest.mark.parametrize("stage", [BOTH, BLANK], ids=["repeat", "blank"])
def test_noise_comes_first_then_size_then_frames(stage):
    x, eps = clips(stage.input)
    logsnr = jnp.array([-1.0, 2.0])
    found = low_res_condition(stage, x, eps=eps, logsnr=logsnr, height=8, width=16)
    expected = np.repeat(noisy_and_large(x, eps, logsnr, 8, 16), 2, axis=1)
    if stage.fill == "blank":
        expected[:, 1::2] = 0
        np.testing.assert_array_equal(found[:, 1::2], 0.0)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("stage", [BOTH, BLANK, SSR1], ids=["repeat", "blank", "ssr"])
def test_image_rows_read_their_own_image_in_every_slot(stage):
    grid = dataclasses.replace(stage.input, frames=stage.output.frames)
    x, eps = clips(grid)
    logsnr = jnp.asarray(np.random.default_rng(1).normal(size=(2, grid.frames)), jnp.float32)
    found = low_res_condition(
        stage, x, eps=eps, logsnr=logsnr, height=8, width=16, is_image=jnp.array([True, False])
    )
    each = noisy_and_large(x, eps, logsnr, 8, 16)
    np.testing.assert_allclose(found[0], each[0], atol=2e-6)
    k = stage.frame_factor
    video = np.repeat(each[1, ::k], k, axis=0)
    if stage.fill == "blank":
        video[np.arange(len(video)) % k != 0] = 0
    np.testing.assert_allclose(found[1], video, atol=2e-6)
    # One by one the images are rows of one frame.
    alone = low_res_condition(
        stage,
        x[:1, 3:4],
        eps=eps[:1, 3:4],
        logsnr=logsnr[:1, 3:4],
        height=8,
        width=16,
        is_image=jnp.array([True]),
    )
    np.testing.assert_allclose(alone[0, 0], found[0, 3], atol=1e-6)


@pytest.mark.parametrize("stage", [BOTH, BLANK, SSR1], ids=["repeat", "blank", "ssr"])
def test_rows_of_videos_in_a_mixed_batch_take_the_road_of_an_all_video_one(stage):
    frames, k = stage.output.frames, stage.frame_factor
    x, eps = clips(dataclasses.replace(stage.input, frames=frames))
    logsnr = jnp.array([0.5, -0.5])
    mixed = low_res_condition(
        stage,
        x,
        eps=eps,
        logsnr=jnp.broadcast_to(logsnr[:, None], (2, frames)),
        height=8,
        width=16,
        is_image=jnp.zeros(2, bool),
    )
    skipped = resample.skip_frames(x, frames=frames // k)
    plain = low_res_condition(stage, skipped, eps=eps[:, ::k], logsnr=logsnr, height=8, width=16)
    np.testing.assert_array_equal(mixed, plain)


def test_sampling_takes_the_same_road_with_its_fixed_level_and_each_samples_noise():
    x, _ = clips(BLANK.input)
    keys = sampling_keys.sample_keys(seeds=[5, 6], indices=[0, 0])
    cond = make_conditioning(
        BLANK,
        BLANK.sampling,
        text_emb=jnp.ones((2, 3, 128)),
        text_mask=jnp.array([[True, True, False], [False, False, False]]),
        low_res=x,
        keys=keys,
    )
    eps = np.stack(
        [
            jax.random.normal(
                sampling_keys.fold_in_name(keys[i : i + 1], "low_res")[0], x.shape[1:]
            )
            for i in range(2)
        ]
    )
    logsnr = jnp.full((2,), np.log(5.0), jnp.float32)
    expected = np.repeat(noisy_and_large(x, eps, logsnr, 8, 16), 2, axis=1)
    expected[:, 1::2] = 0
    np.testing.assert_allclose(cond.low_res, expected, atol=2e-6)
    np.testing.assert_array_equal(cond.low_res[:, 1::2], 0.0)
    np.testing.assert_allclose(cond.low_res_logsnr, logsnr)
    np.testing.assert_array_equal(cond.text_emb.any(-1), cond.text_mask)  # padding is zero


def test_a_stage_survives_json_and_is_a_key():
    for stage in (BASE, TSR1, SSR1):
        again = records.from_dict(Stage, json.loads(json.dumps(records.to_dict(stage))))
        assert again == stage and hash(again) == hash(stage)
    assert (TSR1.frame_factor, TSR1.size_factor) == (2, 1)
    assert (SSR1.frame_factor, SSR1.size_factor) == (1, 2)
    assert (BASE.frame_factor, BASE.size_factor) == (1, 1)


def guided(weight):
    sampling = dataclasses.replace(BASE.sampling, guidance=ConstantGuidance(weight=weight))
    return dataclasses.replace(BASE, sampling=sampling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Grid(frames=0, height=4, width=4), "frames: 0 is below 1"),
        (
            lambda: dataclasses.replace(SSR1, output=Grid(frames=8, height=9, width=16)),
            "height: 9 is not a multiple of 2",
        ),
        (
            lambda: dataclasses.replace(SSR1, output=Grid(frames=12, height=8, width=16)),
            r"output\.frames: 12 is not a multiple of the input's 8",
        ),
        (
            lambda: dataclasses.replace(SSR1, output=Grid(frames=8, height=6, width=16)),
            r"output\.height: 6 is not a multiple of the input's 4",
        ),
        (
            lambda: dataclasses.replace(SSR1, output=Grid(frames=8, height=8, width=32)),
            r"output\.width: 32 is not 2 times the input's 8",
        ),
        (lambda: dataclasses.replace(BASE, text_tokens=0), "text_tokens: 0 is below 1"),
        (lambda: dataclasses.replace(BASE, fps=0.0), "fps: 0.0 is not from 0.001 to 1000"),
        (lambda: dataclasses.replace(BASE, fps=float("nan")), "fps: nan is not from 0.001"),
        (
            lambda: dataclasses.replace(
                guided(3.0), distilled_guidance=ConstantGuidance(weight=3.0)
            ),
            r"sampling\.guidance: a weight of 3\.0, but the weights have learned ConstantGuidance",
        ),
        (
            lambda: dataclasses.replace(
                guided(3.0), distilled_guidance=GuidanceRange(low=0.0, high=2.0)
            ),
            r"sampling\.guidance: a weight of 3\.0, but .* are sampled with 0\.0 to 2\.0",
        ),
        (lambda: dataclasses.replace(SSR1, input=None), r"unet\.low_res"),
        (lambda: dataclasses.replace(BASE, input=BASE.output), r"unet\.low_res"),
        (lambda: dataclasses.replace(SSR1, sampling=SAMPLING), r"sampling\.augmentation"),
        (lambda: dataclasses.replace(SSR1, low_res_error=0.0), "low_res_error: 0.0 is outside"),
        (lambda: dataclasses.replace(BASE, low_res_error=0.1), "low_res_error: needs an input"),
        (lambda: dataclasses.replace(BLANK, low_res_error=0.1), "low_res_error: .*fill 'blank'"),
        (lambda: dataclasses.replace(SAMPLING, num_steps=0), "num_steps: 0 is below 1"),
        (
            lambda: dataclasses.replace(SAMPLING, num_steps=1, stepper=StochasticDistilled()),
            "num_steps: 1 is below 2, the least for StochasticDistilled",
        ),
    ],
)
def test_impossible_stages_are_refused_by_field(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_guidance_doubles_evaluations_unless_the_network_reads_the_weight():
    def evaluations(weight, *, reads_weight=False):
        stage = dataclasses.replace(
            BASE, unet=dataclasses.replace(BASE.unet, guidance_weight=reads_weight)
        )
        guidance = ConstantGuidance(weight=weight)
        return stage.evaluations(dataclasses.replace(SAMPLING, num_steps=5, guidance=guidance))

    assert evaluations(3.0) == 10
    assert evaluations(0.0) == evaluations(3.0, reads_weight=True) == 5
