"""Targets of distillation: where the student lands, against closed forms and published grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video import records
from imagen_video.diffusion import distillation, parameterization, process
from imagen_video.diffusion.distillation import StudentGrid, progressive_target, student_steps
from imagen_video.diffusion.guidance import GuidanceRange
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip
from imagen_video.sampling.steppers import DDIM, StochasticDistilled

SCHEDULE = CosineSchedule()
DATA_STD = 0.5


def gaussian_x(z, logsnr):
    """E[x | z_t] for x ~ N(0, DATA_STD^2): the exact denoiser."""
    alpha, sigma = parameterization.alpha_sigma(parameterization.expand(logsnr, z))
    return alpha * DATA_STD**2 / (alpha**2 * DATA_STD**2 + sigma**2) * z


def clips(count, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, 2, 3, 4, 3)), dtype)


def angles(t):
    """arctan(sigma / alpha) at time t: linear in it."""
    b = np.arctan(np.exp(-10.0))
    return b + np.asarray(t) * (np.pi / 2 - 2 * b)


def teacher_lands(teacher_x, z_t, i, num_steps):
    """Where the DDIM sampler of `num_steps` steps leads from its step i in one step."""
    step = functools.partial(DDIM().step, num_steps=num_steps, schedule=SCHEDULE, noise=z_t)
    logsnr = jnp.broadcast_to(SCHEDULE(jnp.asarray((i + 1) / num_steps)), z_t.shape[:1])
    return step(z_t, teacher_x(z_t, logsnr), i=i)


@pytest.mark.parametrize(("num_steps", "jump"), [(1, 1), (4, 1), (128, 1), (2, 2), (8, 2)])
def test_one_step_of_the_student_lands_where_two_of_the_teacher_do(num_steps, jump):
    """Steps of the samplers themselves, not of the target's code: DDIM of 2N / jump steps."""
    grid, teacher_steps = StudentGrid(num_steps=num_steps, jump=jump), 2 * num_steps // jump
    with jax.enable_x64(True):
        for i in {num_steps - 1, num_steps // 2, jump - 1}:
            z_t = clips(3)
            x = progressive_target(
                gaussian_x, z_t=z_t, i=jnp.full(3, i), grid=grid, schedule=SCHEDULE
            )
            first = (i + 1) * teacher_steps // num_steps - 1
            z = teacher_lands(gaussian_x, z_t, first, teacher_steps)
            if i == 1 and jump == 2:  # A step to z_0, where the teacher's sampler returns its x.
                m = SCHEDULE(jnp.full(3, 1 / teacher_steps))
                z = process.ddim_step(z_t=z, x=gaussian_x(z, m), logsnr_t=m, logsnr_s=SCHEDULE(0.0))
            else:
                z = teacher_lands(gaussian_x, z, first - 1, teacher_steps)
            if i == 0:  # Both samplers end with an x.
                landed = x
            else:
                landed = process.ddim_step(
                    z_t=z_t,
                    x=x,
                    logsnr_t=SCHEDULE((i + 1) / num_steps),
                    logsnr_s=SCHEDULE((i + 1 - jump) / num_steps),
                )
            np.testing.assert_allclose(landed, z, atol=1e-12)
            assert np.abs(x - gaussian_x(z_t, SCHEDULE(jnp.full(3, (i + 1) / num_steps)))).max() > (
                1e-4 if num_steps < 100 else 1e-6
            )


def test_the_whole_student_sampler_gives_what_the_teachers_gives():
    """Students that meet their targets, halved from 16 steps to 4: DDIM's output stays the same."""
    with jax.enable_x64(True):
        z = start = clips(2)
        for i in reversed(range(16)):
            z = teacher_lands(gaussian_x, z, i, 16)

        def student(teacher, grid, z_t, logsnr_t):
            i = jnp.round(SCHEDULE.inverse(logsnr_t) * grid.num_steps).astype(int) - 1
            return progressive_target(teacher, z_t=z_t, i=i, grid=grid, schedule=SCHEDULE)

        teacher = gaussian_x
        for num_steps in student_steps(start_steps=16, final_steps=4, jump=1):
            grid = StudentGrid(num_steps=num_steps)
            teacher = functools.partial(student, teacher, grid)
            ours = start
            for i in reversed(range(num_steps)):
                ours = teacher_lands(teacher, ours, i, num_steps)
            np.testing.assert_allclose(ours, z, atol=1e-9)
        # Without distillation four steps end elsewhere.
        few = start
        for i in reversed(range(4)):
            few = teacher_lands(gaussian_x, few, i, 4)
        assert np.abs(few - z).max() > 0.01


def test_the_last_step_takes_the_x_that_the_teacher_ends_with():
    with jax.enable_x64(True):
        z_t = clips(2)
        i = jnp.asarray([0, 3])
        for jump in (1, 2):
            grid = StudentGrid(num_steps=8, jump=jump)
            x = progressive_target(gaussian_x, z_t=z_t, i=i, grid=grid, schedule=SCHEDULE)
            t, m = SCHEDULE(jnp.full(2, 1 / 8)), SCHEDULE(jnp.full(2, 1 / 16))
            first = gaussian_x(z_t, t)
            z_m = process.ddim_step(z_t=z_t, x=first, logsnr_t=t, logsnr_s=m)
            truth = gaussian_x(z_m, m) if jump == 1 else first
            np.testing.assert_allclose(x[0], truth[0], atol=1e-12)
            assert np.abs(x[1] - truth[1]).max() > 1e-2


def constant_teacher(x_high, x_low, between):
    """Predicts x_high where the log-SNR is below `between`, x_low above."""

    def teacher_x(z, logsnr):
        noisy = parameterization.expand(logsnr, z) < between
        return jnp.where(noisy, x_high, x_low) * jnp.ones_like(z)

    return teacher_x


def test_numbers_of_a_step_from_half_to_a_quarter():
    """With z = 0.7, x1 = 0.3, x2 = 0.5, N = 4 and i = 1: t = 0.5, m = 0.375, s = 0.25."""
    grid = StudentGrid(num_steps=4)
    with jax.enable_x64(True):
        i = jnp.asarray([1])  # int64, so that times are float64
        between = float(SCHEDULE(0.45))

        def target(x_1, x_2):
            z_t = jnp.full((1, 1, 1, 1, 1), 0.7, jnp.float64)
            teacher = constant_teacher(x_1, x_2, between)
            return progressive_target(teacher, z_t=z_t, i=i, grid=grid, schedule=SCHEDULE).item()

        assert target(0.3, 0.5) == pytest.approx(0.4297668423, abs=1e-10)
        origin = target(0.0, 0.0)
        assert origin == pytest.approx(0, abs=1e-12)
        assert target(1.0, 0.0) == pytest.approx(0.3511657885, abs=1e-10)
        assert target(0.0, 1.0) == pytest.approx(0.6488342115, abs=1e-10)
        landed = process.ddim_step(
            z_t=jnp.asarray(0.7, jnp.float64),
            x=jnp.asarray(0.4297668423),
            logsnr_s=SCHEDULE(0.25),
            logsnr_t=SCHEDULE(0.5),
        )
        assert landed == pytest.approx(0.6114334238, abs=1e-9)
        assert target(-0.8, -0.8) == pytest.approx(-0.8, abs=1e-12)


def test_weight_of_the_first_evaluation_in_the_last_step_of_eight():
    """2.326e-4: what the shortcut leaves out, by the equation of every other step."""
    with jax.enable_x64(True):
        t, m, s = (SCHEDULE(jnp.asarray(time)) for time in (1 / 8, 1 / 16, 0.0))
        z_t, zero, one = jnp.asarray(0.7), jnp.asarray(0.0), jnp.asarray(1.0)

        def x_of(x_1, x_2):
            z_m = process.ddim_step(z_t=z_t, x=x_1, logsnr_s=m, logsnr_t=t)
            z_s = process.ddim_step(z_t=z_m, x=x_2, logsnr_s=s, logsnr_t=m)
            return process.x_of_ddim_step(z_s=z_s, z_t=z_t, logsnr_s=s, logsnr_t=t)

        assert x_of(one, zero) == pytest.approx(2.326e-4, rel=1e-3)
        assert x_of(one, zero) + x_of(zero, one) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("parameterization_", ["v", "eps", "x"])
def test_targets_of_every_parameterization_are_one(parameterization_):
    """x, eps and v of a target make z_t = alpha x + sigma eps and v = alpha eps - sigma x."""
    with jax.enable_x64(True):
        z_t, x = clips(2), clips(2, seed=1)
        logsnr_t = SCHEDULE(jnp.asarray([0.2, 0.9]))
        given = {"z_t": z_t, "logsnr_t": logsnr_t, "parameterization": parameterization_}
        prediction = parameterization.prediction_of_x(x, **given)
        np.testing.assert_allclose(parameterization.predict_x(prediction, **given), x, atol=1e-12)
        phi = angles([0.2, 0.9])[:, None, None, None, None]
        eps = (z_t - np.cos(phi) * x) / np.sin(phi)
        truth = {"v": np.cos(phi) * eps - np.sin(phi) * x, "eps": eps, "x": x}
        np.testing.assert_allclose(prediction, truth[parameterization_], atol=1e-9)


def test_ddim_in_angles():
    """z_s = cos(d) z_t - sin(d) v, and x is found again from its two ends."""
    with jax.enable_x64(True):
        d = angles(0.5) - angles(0.25)
        assert d == pytest.approx(0.3926763817, abs=1e-10)
        z_t, v = clips(2)
        x = parameterization.predict_x_from_v(v=v, z_t=z_t, logsnr_t=SCHEDULE(0.5))
        ends = {"logsnr_s": SCHEDULE(0.25), "logsnr_t": SCHEDULE(0.5)}
        z_s = process.ddim_step(z_t=z_t, x=x, **ends)
        np.testing.assert_allclose(z_s, np.cos(d) * z_t - np.sin(d) * v, atol=1e-12)
        np.testing.assert_allclose(process.x_of_ddim_step(z_s=z_s, z_t=z_t, **ends), x, atol=1e-12)


@pytest.mark.parametrize("jump", [1, 2])
@pytest.mark.parametrize("num_steps", [2, 8, 256])
def test_times_are_those_of_the_students_sampler(jump, num_steps):
    """A sampler's step of pure x and pure eps tells the times it moves between."""
    grid = StudentGrid(num_steps=num_steps, jump=jump)
    stepper = {1: DDIM(), 2: StochasticDistilled()}[jump]
    i = jnp.arange(num_steps)
    np.testing.assert_allclose(grid.t(i), (i + 1) / num_steps, rtol=1e-6)
    np.testing.assert_allclose(grid.m(i), (i + 1) / num_steps - jump / (2 * num_steps), atol=1e-7)
    assert (grid.s(i) >= 0).all()
    with jax.enable_x64(True):
        for i in {1, num_steps - 1}:
            t, s = float(angles(grid.t(i))), float(angles(grid.s(i)))
            z_t = jnp.asarray(np.cos(t) * 0.3 + np.sin(t) * -1.2)
            found = stepper.step(
                z_t,
                jnp.asarray(0.3, jnp.float64),
                i=i,
                num_steps=num_steps,
                schedule=SCHEDULE,
                noise=jnp.asarray(0.0, jnp.float64),
            )
            z_s = np.cos(s) * 0.3 + np.sin(s) * -1.2
            m = float(angles(i / num_steps))
            back = 1.0 if jump == 1 else np.cos(m) / np.cos(s)
            np.testing.assert_allclose(found, back * z_s, atol=1e-6)


def test_rows_and_frames_have_steps_of_their_own():
    grid = StudentGrid(num_steps=8)
    rng = np.random.default_rng(0)
    z_t = jnp.asarray(rng.normal(size=(2, 3, 2, 2, 3)), jnp.float32)
    i = jnp.asarray([[7, 0, 3], [1, 5, 0]])
    target = functools.partial(progressive_target, gaussian_x, grid=grid, schedule=SCHEDULE)
    together = target(z_t=z_t, i=i)
    for row, frame in np.ndindex(2, 3):
        alone = target(z_t=z_t[row : row + 1, frame : frame + 1], i=i[row, frame][None])
        np.testing.assert_allclose(together[row, frame], alone[0, 0], atol=2e-5)


def test_ladders():
    assert student_steps(start_steps=256, final_steps=8, jump=1) == (128, 64, 32, 16, 8)
    assert student_steps(start_steps=128, final_steps=8, jump=1) == (64, 32, 16, 8)
    assert student_steps(start_steps=256, final_steps=8, jump=2) == (256, 128, 64, 32, 16, 8)
    assert student_steps(start_steps=128, final_steps=8, jump=2) == (128, 64, 32, 16, 8)
    assert student_steps(start_steps=8, final_steps=8, jump=1) == ()
    assert student_steps(start_steps=8, final_steps=8, jump=2) == (8,)
    for start, final in ((256, 7), (12, 4), (8, 16), (9, 4)):
        with pytest.raises(ValueError, match=f"halving {start} steps never gives {final}"):
            student_steps(start_steps=start, final_steps=final, jump=1)
    with pytest.raises(ValueError, match="final_steps: 1 is below 2"):
        student_steps(start_steps=8, final_steps=1, jump=2)
    assert student_steps(start_steps=8, final_steps=1, jump=1) == (4, 2, 1)


@pytest.mark.parametrize("jump", [1, 2])
def test_every_step_is_two_of_the_teachers_at_times_that_it_knows(jump):
    """The first teacher is sampled by 64 DDIM steps; a later one is the student before."""
    teacher_steps, teacher_jump = 64, 1
    for num_steps in student_steps(start_steps=64, final_steps=4, jump=jump):
        assert 2 * teacher_jump / teacher_steps == jump / num_steps
        grid, i = StudentGrid(num_steps=num_steps, jump=jump), jnp.arange(num_steps)
        times = teacher_steps * np.concatenate([grid.t(i), grid.m(i)])
        np.testing.assert_allclose(times, np.round(times), atol=1e-4)
        # Only the last step at jump 2, whose target is the first evaluation, asks for t = 0.
        assert (grid.m(i)[i > 0] > 0).all() and (jump == 2) == (grid.m(0) == 0)
        teacher_steps, teacher_jump = num_steps, jump


def test_the_guided_target_is_the_same_from_every_parameterization():
    with jax.enable_x64(True):
        z_t, v_c, v_u = clips(2), clips(2, seed=1), clips(2, seed=2)
        logsnr_t = SCHEDULE(jnp.asarray([0.3, 0.8]))
        weight = jnp.asarray([6.0, 1.0])
        given = {"z_t": z_t, "logsnr_t": logsnr_t}
        xs = []
        for space, convert in (
            ("v", lambda v: v),
            ("eps", lambda v: parameterization.predict_eps_from_v(v=v, **given)),
            ("x", lambda v: parameterization.predict_x_from_v(v=v, **given)),
        ):
            for thresholding in (NoThreshold(), StaticClip(), DynamicThreshold(percentile=90.0)):
                target = distillation.guided_target(
                    conditional=convert(v_c),
                    unconditional=convert(v_u),
                    weight=weight,
                    thresholding=thresholding,
                    parameterization=space,
                    **given,
                )
                xs.append(parameterization.predict_x(target, parameterization=space, **given))
        phi = angles([0.3, 0.8])[:, None, None, None, None]
        w = np.asarray(weight)[:, None, None, None, None]
        x = np.cos(phi) * z_t - np.sin(phi) * ((1 + w) * v_c - w * v_u)
        s = np.maximum(np.percentile(np.abs(np.asarray(x, np.float32)), 90, axis=(1, 2, 3, 4)), 1)
        s = s[:, None, None, None, None]
        assert (s > 2).all()
        truths = (x, np.clip(x, -1, 1), np.clip(x, -s, s) / s)
        for number, found in enumerate(xs):
            np.testing.assert_allclose(found, truths[number % 3], atol=2e-7)


def test_a_clipped_target_is_exact_where_nothing_is_clipped():
    """Even at t = 1e-4, where x in float32 tells v to 1e-3 only."""
    logsnr_t = SCHEDULE(jnp.asarray([1e-4]))
    z_t = jnp.full((1, 1, 1, 2, 1), 0.5, jnp.float32).at[0, 0, 0, 0, 0].set(1.5)
    v = jnp.asarray([0.3, 0.4], jnp.float32).reshape(z_t.shape)
    target = distillation.guided_target(
        conditional=v,
        unconditional=v,
        weight=3.0,
        z_t=z_t,
        logsnr_t=logsnr_t,
        thresholding=StaticClip(),
    )
    np.testing.assert_allclose(target[0, 0, 0, 1, 0], 0.4, rtol=1e-6)
    assert abs(target[0, 0, 0, 0, 0] - 0.3) > 100


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="jump: 3 is not one of 1, 2"):
        records.from_dict(StudentGrid, {"num_steps": 4, "jump": 3})
    with pytest.raises(ValueError, match="num_steps: 1 is below jump, 2"):
        StudentGrid(num_steps=1, jump=2)
    for low, high in ((-1.0, 2.0), (4.0, 4.0)):
        with pytest.raises(ValueError, match=f"low: {low} must be at least 0"):
            GuidanceRange(low=low, high=high)
