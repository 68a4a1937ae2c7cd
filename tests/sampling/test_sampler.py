"""The loop: steps, noise per sample, resuming, and the distribution it ends in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video.array_types import Conditioning
from imagen_video.diffusion import guidance, parameterization
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.diffusion.thresholding import NoThreshold, StaticClip
from imagen_video.sampling import keys
from imagen_video.sampling.sampler import Sampler, SamplerState
from imagen_video.sampling.steppers import DDIM, Ancestral, StochasticDistilled

SCHEDULE = CosineSchedule()
SHAPE = (2, 4, 6, 3)
STEPPERS = [DDIM(), Ancestral(gamma=0.3), StochasticDistilled()]


def sampler_of(stepper, num_steps=8) -> Sampler:
    return Sampler(stepper=stepper, num_steps=num_steps, schedule=SCHEDULE)


def keys_of(*indices: int, seed: int = 0):
    sample_keys = keys.sample_keys(seeds=[seed] * len(indices), indices=indices)
    return keys.fold_in_name(sample_keys, "base")


def predict_x(z_t, logsnr_t, step):
    """Some bounded nonlinear denoiser that also depends on the step number."""
    bent = jnp.sin(z_t + 0.1 * parameterization.expand(logsnr_t, z_t) + 0.2 * step)
    return 0.8 * bent


@pytest.mark.parametrize("stepper", STEPPERS, ids=repr)
def test_scan_equals_the_loop_written_out(stepper):
    """The definition: t = (i + 1) / N for i = N-1, ..., 0, one prediction and one step each."""
    num_steps, sample_keys = 5, keys_of(0, 1)
    z = keys.normal(keys.fold_in_name(sample_keys, "init"), SHAPE)
    for step in range(num_steps):
        i = num_steps - 1 - step
        x_hat = predict_x(z, jnp.full((2,), SCHEDULE((i + 1) / num_steps)), step)
        noise = keys.normal(keys.fold_in_step(sample_keys, step), SHAPE)
        z = stepper.step(z, x_hat, i=i, num_steps=num_steps, schedule=SCHEDULE, noise=noise)
    sampler = sampler_of(stepper, num_steps)
    got = jax.jit(lambda k: sampler.sample(k, shape=SHAPE, predict_x=predict_x))(sample_keys)
    assert got.dtype == jnp.float32 and got.shape == (2, *SHAPE)
    np.testing.assert_allclose(got, z, atol=2e-5)
    np.testing.assert_allclose(got, x_hat, atol=2e-5)  # what the last step returns


def test_one_evaluation_per_step_at_the_right_log_snr():
    seen = []

    def recording(z_t, logsnr_t, step):
        seen.append((int(step), np.asarray(logsnr_t)))
        return predict_x(z_t, logsnr_t, step)

    sampler, sample_keys = sampler_of(Ancestral(), 4), keys_of(0, 1, 2)
    state = sampler.init(sample_keys, shape=SHAPE)
    for _ in range(4):
        state = sampler.step(state, predict_x=recording, keys=sample_keys)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert int(state.step) == 4
    for (_, logsnr_t), t in zip(seen, (1, 0.75, 0.5, 0.25)):
        np.testing.assert_allclose(logsnr_t, np.full(3, SCHEDULE(float(t))), atol=1e-5)


def test_no_trajectory_is_kept():
    sampler, sample_keys = sampler_of(DDIM(), 64), keys_of(0)
    program = jax.jit(lambda k: sampler.sample(k, shape=SHAPE, predict_x=predict_x))
    clip_bytes = 4 * np.prod(SHAPE)
    memory = program.lower(sample_keys).compile().memory_analysis()
    assert memory.output_size_in_bytes < 2 * clip_bytes
    assert memory.temp_size_in_bytes < 16 * clip_bytes < 64 * clip_bytes


def compiled_run(sampler: Sampler, sample_keys):
    @jax.jit
    def run(state, steps):
        return sampler.run(state, steps=steps, predict_x=predict_x, keys=sample_keys)

    return run


@pytest.mark.parametrize("stepper", STEPPERS, ids=repr)
def test_pieces_share_one_program_and_resuming_repeats_the_bits(stepper):
    sampler, sample_keys = sampler_of(stepper), keys_of(0, 1)
    run = compiled_run(sampler, sample_keys)
    start = sampler.init(sample_keys, shape=SHAPE)

    def finish(state, steps_per_call):
        return list(sampler.drive(state, run=run, steps_per_call=steps_per_call))

    whole = finish(start, 8)
    assert [int(s.step) for s in whole] == [8]
    pieces = finish(start, 3)
    assert [int(s.step) for s in pieces] == [3, 6, 8]
    np.testing.assert_array_equal(pieces[-1].z, whole[-1].z)
    # Saved as numpy, restored in another place, resumed with pieces of another length.
    saved = jax.tree.map(np.asarray, pieces[0])
    restored = jax.tree.map(jnp.asarray, saved)
    resumed = finish(restored, 4)
    assert [int(s.step) for s in resumed] == [7, 8]
    np.testing.assert_array_equal(resumed[-1].z, whole[-1].z)
    assert run._cache_size() == 1
    scanned = jax.jit(lambda k: sampler.sample(k, shape=SHAPE, predict_x=predict_x))(sample_keys)
    np.testing.assert_allclose(scanned, whole[-1].z, atol=1e-5)
    # Negative control: with the step number lost, the noise and the times would be others.
    lost = dataclasses.replace(restored, step=jnp.int32(0))
    assert np.abs(finish(lost, 8)[-1].z - whole[-1].z).max() > 1e-2


def test_a_finished_state_is_left_alone():
    sampler, sample_keys = sampler_of(DDIM()), keys_of(0)
    done = SamplerState(z=jnp.zeros((1, *SHAPE)), step=jnp.int32(8))
    assert not list(sampler.drive(done, run=compiled_run(sampler, sample_keys), steps_per_call=2))


@pytest.mark.parametrize("stepper", STEPPERS, ids=repr)
def test_a_sample_is_the_same_alone_and_in_a_batch(stepper):
    sampler = sampler_of(stepper)
    sample = jax.jit(lambda k: sampler.sample(k, shape=SHAPE, predict_x=predict_x))
    together = sample(keys_of(0, 1, 2, 3))
    for index in range(4):
        np.testing.assert_allclose(sample(keys_of(index))[0], together[index], atol=1e-5)
    other_seed = sample(keys_of(0, 1, 2, 3, seed=1))
    for a in range(4):
        for b in range(4):
            assert np.abs(together[a] - other_seed[b]).max() > 1e-2
            assert a == b or np.abs(together[a] - together[b]).max() > 1e-2


def gaussian_v_hat(z_t, logsnr_t, cond: Conditioning):
    """The exact v-model of x ~ N(m, 0.5^2), m the sum of the caption's embedding if it has one."""
    alpha_t, sigma_t = parameterization.alpha_sigma(parameterization.expand(logsnr_t, z_t))
    mean = jnp.sum(cond.text_emb * cond.text_mask[..., None], axis=(1, 2))
    mean = parameterization.expand(mean, z_t)
    gain = alpha_t * 0.25 / (alpha_t**2 * 0.25 + sigma_t**2)
    x_hat = mean + gain * (z_t - alpha_t * mean)
    return parameterization.predict_v_from_x(x=x_hat, z_t=z_t, logsnr_t=logsnr_t)


@pytest.mark.parametrize(
    ("stepper", "std"),
    [
        (DDIM(), 0.48809),
        (StochasticDistilled(), 0.47040),
        (Ancestral(gamma=0.3), 0.48304),
        (Ancestral(gamma=1.0), 0.50669),
    ],
    ids=repr,
)
def test_gaussian_data_through_loop_guidance_and_keys(stepper, std):
    """300,000 draws of 64 steps: the standard deviation theory gives, and the right means."""
    caption_means = jnp.asarray([0.0, 0.3])
    cond = Conditioning(text_emb=caption_means[:, None, None], text_mask=jnp.ones((2, 1), bool))
    weight = 0.5
    sampler = sampler_of(stepper, 64)

    @jax.jit
    def sample(sample_keys):
        predict_x = guidance.guided(
            gaussian_v_hat, cond, weights=(weight,) * 64, thresholding=NoThreshold()
        )
        return sampler.sample(sample_keys, shape=(8, 80, 80, 3), predict_x=predict_x)

    clips = np.asarray(sample(keys_of(0, 1)), np.float64)
    # Both branches are Gaussians of one width: guidance moves the mean to (1 + w) m only.
    for clip, mean in zip(clips, (1 + weight) * caption_means):
        np.testing.assert_allclose(clip.mean(), mean, atol=0.006)
        np.testing.assert_allclose(clip.std(), std, atol=0.003)


def test_clipped_predictions_end_within_pixels():
    cond = Conditioning(text_emb=jnp.ones((1, 1, 1)), text_mask=jnp.ones((1, 1), bool))
    sampler = sampler_of(Ancestral())
    predict_x = guidance.guided(
        gaussian_v_hat, cond, weights=(15.0,) * 8, thresholding=StaticClip()
    )
    clip = sampler.sample(keys_of(0), shape=SHAPE, predict_x=predict_x)
    assert np.abs(clip).max() <= 1


@pytest.mark.parametrize(("stepper", "num_steps"), [(DDIM(), 0), (StochasticDistilled(), 1)])
def test_rejects_too_few_steps(stepper, num_steps):
    with pytest.raises(ValueError, match=f"num_steps: {num_steps} must be at least"):
        sampler_of(stepper, num_steps)


def test_rejects_empty_pieces():
    sampler, sample_keys = sampler_of(DDIM()), keys_of(0)
    state = sampler.init(sample_keys, shape=SHAPE)
    with pytest.raises(ValueError, match="steps_per_call: 0 must be at least 1"):
        next(sampler.drive(state, run=compiled_run(sampler, sample_keys), steps_per_call=0))
