"""Both stages of distillation on real stages: what the student is measured against."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_cascade import BASE, SSR1, TSR1, drawn_params
from test_objectives import KEY, alpha_sigma, encode, make_batch

from imagen_video.cascade.stage import denoise_fn
from imagen_video.diffusion.distillation import StudentGrid
from imagen_video.diffusion.guidance import (
    ConstantGuidance,
    GuidanceRange,
    OscillatingGuidance,
    drop_text,
)
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip
from imagen_video.training import distillation, objectives
from imagen_video.training.distillation import (
    GuidedObjective,
    ProgressiveObjective,
    distillation_loss,
)

CONSTANT = ConstantGuidance(weight=3.0)
RESIDUAL = dataclasses.replace(SSR1, low_res_error=0.3)
READS_W = dataclasses.replace(BASE, unet=dataclasses.replace(BASE.unet, guidance_weight=True))


@pytest.fixture
def bound(monkeypatch):
    """Networks are what is given for their parameters; what they are called with is kept.

    Without compilation, so that they are called as often as they are evaluated, with numbers.
    """
    calls = []

    def bind(stage, params, *, layout=None):
        def denoise(z_t, logsnr_t, cond):
            calls.append((z_t, logsnr_t, cond))
            return params(z_t, logsnr_t, cond)

        return denoise

    monkeypatch.setattr(distillation, "denoise_fn", bind)
    with jax.disable_jit():
        yield calls


def with_and_without(z_t, logsnr_t, cond):
    """A teacher: one thing with a caption, another without."""
    has_text = cond.text_mask.any(axis=1)
    if cond.caption_index is not None:
        has_text = has_text[cond.caption_index][:, :, None, None, None]
    else:
        has_text = has_text[:, None, None, None, None]
    return jnp.where(has_text, 0.5 * z_t, 0.2 - 0.3 * z_t)


def exact_student(weight_of):
    def student(z_t, logsnr_t, cond):
        w = jnp.asarray(weight_of(logsnr_t, cond))
        w = w.reshape(*w.shape, *[1] * (5 - w.ndim)) if w.ndim else w
        return (1 + w) * 0.5 * z_t - w * (0.2 - 0.3 * z_t)

    return student


OSCILLATING = GuidedObjective(
    guidance=OscillatingGuidance(constant_steps=2, high=5.0), loss="v_mse", grid_steps=8
)
CASES = {
    "constant": (
        GuidedObjective(guidance=CONSTANT, loss="v_mse"),
        exact_student(lambda logsnr, cond: 3.0),
    ),
    "range": (
        GuidedObjective(guidance=GuidanceRange(low=1.0, high=9.0), loss="v_mse"),
        exact_student(lambda logsnr, cond: cond.guidance_weight),
    ),
    "oscillating": (
        OSCILLATING,
        # Times 1, 7/8, ..., 1/8 have the weights 5, 5, 1, 5, 1, 5, 1, 5 of eight sampling steps.
        exact_student(
            lambda logsnr, cond: jnp.asarray([5.0, 1, 5, 1, 5, 1, 5, 5])[
                jnp.round(8 * BASE.schedule.inverse(logsnr)).astype(int) - 1
            ]
        ),
    ),
}


@pytest.mark.parametrize("images", [(), (1, 3)], ids=["videos", "mixed"])
@pytest.mark.parametrize("case", CASES)
def test_the_guided_teacher_in_one_evaluation_has_no_loss(bound, case, images):
    objective, student = CASES[case]
    batch = make_batch(BASE, images=images)
    stages = {"student": BASE, "teacher": BASE}
    measure = functools.partial(distillation_loss, objective)
    loss, _ = measure(student, with_and_without, encode, batch, KEY, **stages)
    assert loss < 1e-10
    # The teacher saw both branches of every row, the student one; no caption was dropped.
    (both, _, teacher_cond), (z_t, logsnr_t, cond) = bound
    assert len(both) == 2 * len(z_t) and teacher_cond.guidance_weight is None
    assert cond.text_mask.any(axis=1).all()
    assert (cond.guidance_weight is None) == (case != "range")
    if case == "range":
        w = np.asarray(cond.guidance_weight)
        assert w.shape == (4,) and len(set(w.tolist())) == 4 and ((w > 1) & (w < 9)).all()
    if case == "oscillating":
        i = 8 * np.asarray(BASE.schedule.inverse(logsnr_t))
        np.testing.assert_allclose(i, np.round(i), atol=1e-4)
        assert i.min() > 0.99
    wrong = exact_student(lambda logsnr, cond: 2.0)
    loss, _ = measure(wrong, with_and_without, encode, batch, KEY, **stages)
    assert loss > 1e-2


def test_continuous_times_are_those_of_training():
    batch = make_batch(BASE)
    captions = {"text_emb": jnp.zeros((4, 12, 128)), "text_mask": jnp.ones((4, 12), bool)}
    draw = functools.partial(
        objectives.draw_inputs, BASE, batch, KEY, **captions, max_augmentation=1.0
    )
    t = BASE.schedule.inverse(draw().logsnr_t)
    on_grid = draw(grid_steps=4)
    np.testing.assert_array_equal(on_grid.step, np.floor(4 * np.asarray(t)))
    np.testing.assert_array_equal(on_grid.logsnr_t, BASE.schedule((on_grid.step + 1) / 4))
    assert draw().step is None


def test_times_of_a_grid_are_equally_frequent():
    rows = jnp.arange(8000)
    batch = {"video": jnp.zeros((8000, 1, 1, 1, 3)), "row": rows}
    inputs = objectives.draw_inputs(
        BASE,
        batch,
        KEY,
        text_emb=jnp.zeros((8000, 1, 1)),
        text_mask=jnp.ones((8000, 1), bool),
        max_augmentation=1.0,
        grid_steps=8,
    )
    counts = np.bincount(np.asarray(inputs.step), minlength=8)
    assert len(counts) == 8
    # Four standard deviations of a binomial count.
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(8000 / 8 * 7 / 8)


def drawn(stage, batch, objective):
    """What the loss draws, by the function that the denoising loss is tested with."""
    emb, mask = objectives.embed_captions(batch, encode=encode, dropout=0.0, key=KEY)
    grid = getattr(objective, "grid_steps", None) or getattr(objective, "grid", None)
    return objectives.draw_inputs(
        stage,
        batch,
        KEY,
        text_emb=emb,
        text_mask=mask,
        max_augmentation=objective.max_augmentation,
        grid_steps=grid.num_steps if isinstance(grid, StudentGrid) else grid,
    )


@functools.partial(jax.jit, static_argnames=("stage",))
def evaluate(stage, params, z_t, logsnr_t, cond):
    return denoise_fn(stage, params)(z_t, logsnr_t, cond)


def wide(logsnr):
    logsnr = np.asarray(logsnr, np.float64)
    return logsnr.reshape(*logsnr.shape, *[1] * (5 - logsnr.ndim))


def bounded_like(thresholding, x, images):
    """Static clipping and dynamic thresholding with numpy, packed images one by one."""
    if isinstance(thresholding, NoThreshold):
        return x
    if isinstance(thresholding, StaticClip):
        return np.clip(x, -1, 1)
    out = np.empty_like(x)
    for row, clip in enumerate(x):
        parts = clip if row in images else clip[None]
        s = [max(np.percentile(np.abs(part), thresholding.percentile), 1) for part in parts]
        scaled = np.stack([np.clip(part, -k, k) / k for part, k in zip(parts, s)])
        out[row] = scaled if row in images else scaled[0]
    return out


def same_stage_loss(objective, stage, batch):
    """The loss of (params, teacher_params), compiled, of a student built like its teacher."""
    stages = {"student": stage, "teacher": stage}
    return jax.jit(
        lambda params, teacher_params: distillation_loss(
            objective, params, teacher_params, encode, batch, KEY, **stages
        )[0]
    )


@pytest.mark.parametrize(
    ("stage", "images", "thresholding", "loss"),
    [
        pytest.param(BASE, (), NoThreshold(), "snr_trunc", marks=pytest.mark.slow),
        (BASE, (1, 2), DynamicThreshold(percentile=80.0), "v_mse"),
        pytest.param(RESIDUAL, (0,), StaticClip(), "r_mse", marks=pytest.mark.slow),
    ],
    ids=["base", "packed", "residual"],
)
def test_stage_one_of_real_networks(stage, images, thresholding, loss):
    batch = make_batch(stage, images=images)
    objective = GuidedObjective(
        guidance=CONSTANT, thresholding=thresholding, loss=loss, max_augmentation=0.5
    )
    params, teacher_params = drawn_params(stage, 1), drawn_params(stage, 0)
    loss_of = same_stage_loss(objective, stage, batch)
    found = loss_of(params, teacher_params)
    inputs = drawn(stage, batch, objective)
    z_t, logsnr_t, cond = inputs.z_t, inputs.logsnr_t, inputs.cond
    v_c, v_u, v_hat = (
        np.asarray(evaluate(stage, p, z_t, logsnr_t, c), np.float64)
        for p, c in ((teacher_params, cond), (teacher_params, drop_text(cond)), (params, cond))
    )
    alpha, sigma = alpha_sigma(wide(logsnr_t))
    x = alpha * np.asarray(z_t) - sigma * (4 * v_c - 3 * v_u)
    x_hat = alpha * np.asarray(z_t) - sigma * v_hat
    squared = (x_hat - bounded_like(thresholding, x, images)) ** 2 / sigma**2
    if loss == "snr_trunc":
        squared = squared * np.maximum(alpha**2, sigma**2)
    if loss == "r_mse":
        alpha_a, sigma_a = alpha_sigma(wide(cond.low_res_logsnr))
        e2 = sigma_a**2 + alpha_a**2 * 0.3**2
        squared = squared * (sigma**2 + e2 * alpha**2) / e2
    np.testing.assert_allclose(found, squared.mean(), rtol=2e-3)
    assert found > 0.1
    # The frozen teacher is not learned.
    frozen = jax.jit(jax.grad(loss_of, argnums=1))(params, teacher_params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize(
    ("stage", "images", "jump", "loss"),
    [
        pytest.param(BASE, (), 2, "snr_trunc", marks=pytest.mark.slow),
        pytest.param(TSR1, (1,), 1, "v_mse", marks=pytest.mark.slow),
        (RESIDUAL, (), 2, "r_mse"),
    ],
    ids=["base", "packed", "residual"],
)
def test_stage_two_of_real_networks(stage, images, jump, loss):
    """Against two steps of the DDIM sampler with the teacher's network."""
    batch = make_batch(stage, images=images)
    grid = StudentGrid(num_steps=4, jump=jump)
    objective = ProgressiveObjective(grid=grid, loss=loss, max_augmentation=0.5)
    params, teacher_params = drawn_params(stage, 1), drawn_params(stage, 0)
    loss_of = same_stage_loss(objective, stage, batch)
    found = loss_of(params, teacher_params)
    inputs = drawn(stage, batch, objective)
    z_t, logsnr_t, cond = inputs.z_t, inputs.logsnr_t, inputs.cond
    steps = np.asarray(inputs.step)
    K = 8 // jump  # steps of the teacher's sampler

    def teacher_step(z, k):
        """One DDIM step of the teacher from (k + 1) / K; k is that of each row or frame."""
        level = stage.schedule(jnp.asarray((k + 1) / K, jnp.float32))
        v = np.asarray(evaluate(stage, teacher_params, jnp.asarray(z, jnp.float32), level, cond))
        alpha, sigma = alpha_sigma(wide(level))
        x = alpha * z - sigma * v
        a, s = alpha_sigma(wide(stage.schedule(jnp.asarray(np.maximum(k, 0) / K, jnp.float32))))
        return x, a * x + s * (sigma * z + alpha * v)

    first = (steps + 1) * K // 4 - 1
    x_1, z_m = teacher_step(np.asarray(z_t, np.float64), first)
    x_2, z_s = teacher_step(z_m, first - 1)
    alpha, sigma = alpha_sigma(wide(logsnr_t))
    end = stage.schedule(jnp.asarray(np.maximum(steps + 1 - jump, 0) / 4, jnp.float32))
    a, s = alpha_sigma(wide(end))
    x = (z_s - s / sigma * z_t) / (a - s / sigma * alpha)
    last = wide(steps) == 0
    x = np.where(last, x_2 if jump == 1 else x_1, x)
    v_hat = evaluate(stage, params, z_t, logsnr_t, cond)
    squared = (np.asarray(v_hat) - (alpha * z_t - x) / sigma) ** 2
    if loss == "snr_trunc":
        squared = squared * np.maximum(alpha**2, sigma**2)
    if loss == "r_mse":
        alpha_a, sigma_a = alpha_sigma(wide(cond.low_res_logsnr))
        e2 = sigma_a**2 + alpha_a**2 * 0.3**2
        squared = squared * (sigma**2 + e2 * alpha**2) / e2
    np.testing.assert_allclose(found, squared.mean(), rtol=2e-3)
    assert found > 0.01 and len(set(steps.ravel().tolist())) > 1


def v_gain(angle, std=0.5):
    """Of x ~ N(0, std^2) the exact v over z_t, where arctan(sigma / alpha) is `angle`."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * sin * (1 - std**2) / (cos**2 * std**2 + sin**2)


def ddim_gain(t, s):
    """z_s / z_t of its DDIM step between two angles; x itself lies at angle 0."""
    return np.cos(t - s) - np.sin(t - s) * v_gain(t)


def gaussian_teacher(z_t, logsnr_t, cond):
    return jnp.asarray(v_gain(np.arctan(np.exp(-wide(logsnr_t) / 2))), jnp.float32) * z_t


def gaussian_student(z_t, logsnr_t, cond, *, num_steps, jump, halfway=0.5, off=0.0):
    """The v by which one step multiplies z_t as two of the teacher do, plus `off`."""
    t, b = np.arctan(np.exp(-wide(logsnr_t) / 2)), np.arctan(np.exp(-10.0))
    whole = np.pi / 2 - 2 * b
    length = whole * jump / num_steps
    last = t - b < whole * 1.5 / num_steps
    # The last step ends with the last x: at jump 2, where m is time 0, with the first.
    m = np.where(last & (jump == 2), 0.0, t - halfway * length)
    s = np.where(last, 0.0, t - length)
    gain = ddim_gain(t, m) * ddim_gain(m, s)
    return jnp.asarray((np.cos(t - s) - gain) / np.sin(t - s), jnp.float32) * z_t + off


@pytest.mark.parametrize("jump", [1, 2])
@pytest.mark.parametrize("loss", ["v_mse", "snr_trunc"])
def test_the_exact_student_of_stage_two_has_no_loss_and_a_wrong_one_its_weight(bound, loss, jump):
    objective = ProgressiveObjective(grid=StudentGrid(num_steps=4, jump=jump), loss=loss)
    batch, stages = make_batch(BASE, images=(0, 1)), {"student": BASE, "teacher": BASE}

    def measure(**changes):
        student = functools.partial(gaussian_student, **{"num_steps": 4, "jump": jump} | changes)
        networks = student, gaussian_teacher
        return distillation_loss(objective, *networks, encode, batch, KEY, **stages)[0]

    assert measure() < 1e-11
    _, logsnr_t, _ = bound[-1]
    alpha, sigma = alpha_sigma(np.asarray(logsnr_t, np.float64))
    # Every step is there, the last one, too.
    assert set(np.round(4 * np.asarray(BASE.schedule.inverse(logsnr_t))).ravel()) == {1, 2, 3, 4}
    weight = {"v_mse": np.ones_like(alpha), "snr_trunc": np.maximum(alpha**2, sigma**2)}[loss]
    np.testing.assert_allclose(measure(off=0.1), 0.01 * weight.mean(), rtol=1e-4)
    # What a wrong midpoint, grid or jump would make of the target.
    for wrong in ({"halfway": 0.4}, {"num_steps": 8}, {"jump": 3 - jump}):
        assert measure(**wrong) > 1e-6


def test_both_networks_read_the_weight_in_stage_two(bound):
    def network(z_t, logsnr_t, cond):
        return z_t * cond.guidance_weight[:, None, None, None, None]

    objective = ProgressiveObjective(
        grid=StudentGrid(num_steps=4), guidance=GuidanceRange(low=1.0, high=9.0)
    )
    stages = {"student": READS_W, "teacher": READS_W}
    distillation_loss(objective, network, network, encode, make_batch(BASE), KEY, **stages)
    weights = [np.asarray(cond.guidance_weight) for _, _, cond in bound]
    assert len(weights) == 3 and all((w == weights[0]).all() for w in weights)


def test_oscillating_guidance_needs_a_grid():
    with pytest.raises(ValueError, match="grid_steps: None"):
        GuidedObjective(guidance=OscillatingGuidance())
