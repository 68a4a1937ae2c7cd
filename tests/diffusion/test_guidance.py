"""Guidance: Eq. 5 in every space, one evaluation for both branches, and the weights over steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_video import records
from imagen_video.array_types import Conditioning
from imagen_video.diffusion import guidance, parameterization, process
from imagen_video.diffusion.guidance import ConstantGuidance, OscillatingGuidance
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip

B, F, H, W, C = 3, 2, 4, 6, 3


def conditioning(*, packed: bool = False, low_res: bool = True) -> Conditioning:
    rng = np.random.default_rng(0)
    m = 5 if packed else B
    return Conditioning(
        text_emb=jnp.asarray(rng.normal(size=(m, 4, 8)), jnp.float32),
        text_mask=jnp.asarray(rng.uniform(size=(m, 4)) < 0.7),
        caption_index=jnp.asarray([[0, 1], [2, 2], [4, 3]]) if packed else None,
        is_image=jnp.asarray([True, False, True]) if packed else None,
        low_res=jnp.asarray(rng.normal(size=(B, F, H, W, C)), jnp.float32) if low_res else None,
        low_res_logsnr=jnp.asarray([1.0, 2.0, 3.0]) if low_res else None,
    )


def denoise(z_t, logsnr_t, cond: Conditioning):
    """A function of every input: each row must meet its own log-SNR, captions and low_res."""
    pooled = jnp.sum(cond.text_emb * cond.text_mask[..., None], axis=(1, 2))
    index = cond.caption_index
    if index is None:
        index = jnp.broadcast_to(jnp.arange(z_t.shape[0])[:, None], z_t.shape[:2])
    out = jnp.sin(z_t + pooled[index][:, :, None, None, None])
    out = out * parameterization.expand(1 + 0.1 * logsnr_t, z_t)
    if cond.low_res is not None:
        out += cond.low_res * parameterization.expand(cond.low_res_logsnr, z_t)
    if cond.is_image is not None:
        out += 0.3 * parameterization.expand(cond.is_image.astype(jnp.float32), z_t)
    return out


def noisy():
    rng = np.random.default_rng(1)
    z_t = jnp.asarray(rng.normal(size=(B, F, H, W, C)), jnp.float32)
    return z_t, jnp.asarray([-1.0, 0.0, 2.0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("low_res", [False, True])
def test_one_batched_evaluation_equals_two(packed, low_res):
    cond = conditioning(packed=packed, low_res=low_res)
    z_t, logsnr_t = noisy()
    predict_x = guidance.guided(denoise, cond, weights=[6.0], thresholding=NoThreshold())
    v_c = denoise(z_t, logsnr_t, cond)
    v_u = denoise(z_t, logsnr_t, guidance.drop_text(cond))
    v_tilde = 7 * v_c - 6 * v_u
    truth = parameterization.predict_x_from_v(v=v_tilde, z_t=z_t, logsnr_t=logsnr_t)
    np.testing.assert_allclose(predict_x(z_t, logsnr_t, 0), truth, atol=1e-5)
    # Negative control: without the offset of the dropped captions it would be unguided.
    assert np.abs(v_c - v_u).max() > 0.1


def test_drop_text_drops_the_text_only():
    cond = conditioning(packed=True)
    dropped = guidance.drop_text(cond)
    assert not np.any(dropped.text_emb) and not np.any(dropped.text_mask)
    for name in ("caption_index", "is_image", "low_res", "low_res_logsnr"):
        assert getattr(dropped, name) is getattr(cond, name)


def test_both_branches_offsets_the_captions():
    both = guidance.both_branches(conditioning(packed=True))
    index = np.asarray([[0, 1], [2, 2], [4, 3]])
    np.testing.assert_array_equal(both.caption_index[::2], 2 * index)
    np.testing.assert_array_equal(both.caption_index[1::2], 2 * index + 1)
    np.testing.assert_array_equal(both.text_mask[1::2], False)


@pytest.mark.parametrize(
    ("weights", "rows"), [((0.0, 0.0), B), ((0.0, 1.0), 2 * B), (np.zeros(2), B)]
)
def test_all_zero_weights_choose_one_evaluation(weights, rows):
    seen = []

    def counting(z_t, logsnr_t, cond):
        seen.append((z_t.shape[0], logsnr_t.shape[0], cond.text_emb.shape[0]))
        return denoise(z_t, logsnr_t, cond)

    cond, (z_t, logsnr_t) = conditioning(), noisy()
    predict_x = guidance.guided(counting, cond, weights=weights, thresholding=NoThreshold())
    x_hat = jax.jit(predict_x)(z_t, logsnr_t, jnp.int32(0))
    assert seen == [(rows, rows, rows)]
    v = denoise(z_t, logsnr_t, cond)
    truth = parameterization.predict_x_from_v(v=v, z_t=z_t, logsnr_t=logsnr_t)
    np.testing.assert_allclose(x_hat, truth, atol=1e-5)


def test_weight_minus_one_is_unconditional():
    cond, (z_t, logsnr_t) = conditioning(), noisy()
    predict_x = guidance.guided(denoise, cond, weights=[-1.0], thresholding=NoThreshold())
    v = denoise(z_t, logsnr_t, guidance.drop_text(cond))
    truth = parameterization.predict_x_from_v(v=v, z_t=z_t, logsnr_t=logsnr_t)
    np.testing.assert_allclose(predict_x(z_t, logsnr_t, 0), truth, atol=1e-5)


def test_traced_step_picks_its_weight():
    cond, (z_t, logsnr_t) = conditioning(), noisy()
    weights = (3.0, 0.0, 15.0)
    varying = jax.jit(guidance.guided(denoise, cond, weights=weights, thresholding=NoThreshold()))
    for step, weight in enumerate(weights):
        constant = guidance.guided(denoise, cond, weights=[weight], thresholding=NoThreshold())
        got = varying(z_t, logsnr_t, jnp.int32(step))
        np.testing.assert_allclose(got, constant(z_t, logsnr_t, 0), atol=2e-5)


def test_guidance_commutes_with_the_choice_of_space():
    """Guided in x, eps or v, the DDIM step is the same (1e-12, float64)."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        z_t, v_c, v_u = (jnp.asarray(a) for a in rng.normal(size=(3, 2, 3, 4, 4, 1)))
        logsnr_t, logsnr_s = CosineSchedule()(0.6), CosineSchedule()(0.5)
        given = {"z_t": z_t, "logsnr_t": logsnr_t}
        x_c, x_u = (parameterization.predict_x_from_v(v=v, **given) for v in (v_c, v_u))
        eps_c, eps_u = (parameterization.predict_eps_from_v(v=v, **given) for v in (v_c, v_u))
        x_hats = [
            parameterization.predict_x(
                guidance.guide(conditional=c, unconditional=u, weight=6.0),
                parameterization=space,
                **given,
            )
            for c, u, space in ((v_c, v_u, "v"), (eps_c, eps_u, "eps"), (x_c, x_u, "x"))
        ]
        z_s = [process.ddim_step(x=x, logsnr_s=logsnr_s, **given) for x in x_hats]
        np.testing.assert_allclose(z_s[1], z_s[0], atol=1e-12)
        np.testing.assert_allclose(z_s[2], z_s[0], atol=1e-12)


def test_a_network_that_reads_the_weight_is_evaluated_once_with_that_of_the_step():
    seen = []

    def reads(z_t, logsnr_t, cond):
        seen.append(z_t.shape[0])
        return denoise(z_t, logsnr_t, cond) + parameterization.expand(cond.guidance_weight, z_t)

    cond, (z_t, logsnr_t) = conditioning(), noisy()
    predict_x = guidance.guided(
        reads, cond, weights=[6.0, 2.0], thresholding=NoThreshold(), reads_weight=True
    )
    for step, weight in enumerate((6.0, 2.0)):
        v = denoise(z_t, logsnr_t, cond) + weight
        truth = parameterization.predict_x_from_v(v=v, z_t=z_t, logsnr_t=logsnr_t)
        got = jax.jit(predict_x)(z_t, logsnr_t, jnp.int32(step))
        np.testing.assert_allclose(got, truth, atol=1e-5)
    assert seen == [B]  # one program, no second branch


@pytest.mark.parametrize("space", ["eps", "x"])
def test_networks_of_other_parameterizations(space):
    cond, (z_t, logsnr_t) = conditioning(), noisy()

    def converted(z_t, logsnr_t, cond):
        given = {"v": denoise(z_t, logsnr_t, cond), "z_t": z_t, "logsnr_t": logsnr_t}
        name = f"predict_{space}_from_v"
        return getattr(parameterization, name)(**given)

    options = {"weights": [6.0], "thresholding": NoThreshold()}
    of_v = guidance.guided(denoise, cond, **options)
    other = guidance.guided(converted, cond, parameterization=space, **options)
    np.testing.assert_allclose(other(z_t, logsnr_t, 0), of_v(z_t, logsnr_t, 0), atol=5e-5)


@pytest.mark.parametrize("thresholding", [StaticClip(), DynamicThreshold()])
def test_thresholding_comes_after_guidance(thresholding):
    cond, (z_t, logsnr_t) = conditioning(), noisy()
    options = {"weights": [15.0]}
    raw = guidance.guided(denoise, cond, thresholding=NoThreshold(), **options)
    bounded = guidance.guided(denoise, cond, thresholding=thresholding, **options)
    x_hat = raw(z_t, logsnr_t, 0)
    assert np.abs(x_hat).max() > 2
    np.testing.assert_array_equal(bounded(z_t, logsnr_t, 0), thresholding(x_hat))


def test_bfloat16_networks_are_guided_in_float32():
    cond, (z_t, logsnr_t) = conditioning(), noisy()

    def bfloat16(z_t, logsnr_t, cond):
        return denoise(z_t, logsnr_t, cond).astype(jnp.bfloat16)

    def rounded(z_t, logsnr_t, cond):
        return bfloat16(z_t, logsnr_t, cond).astype(jnp.float32)

    options = {"weights": [15.0], "thresholding": NoThreshold()}
    got = guidance.guided(bfloat16, cond, **options)(z_t, logsnr_t, 0)
    assert got.dtype == jnp.float32
    truth = guidance.guided(rounded, cond, **options)(z_t, logsnr_t, 0)
    np.testing.assert_allclose(got, truth, atol=1e-6)


def test_oscillating_weights_as_published():
    weights = OscillatingGuidance().weights(256)
    first = sum(int(i / 256 < 0.1) for i in range(256))
    assert first == 26
    assert weights[:first] == (15.0,) * first
    assert weights[first:] == (1.0, 15.0) * 115
    assert np.mean(weights[first:]) == 8
    # Public imitations of the paper: low at even steps, high at odd ones, after the first tenth.
    assert weights[first:] == tuple(15.0 if i % 2 else 1.0 for i in range(first, 256))


def test_oscillating_options():
    assert OscillatingGuidance(constant_steps=2).weights(5) == (15.0, 15.0, 1.0, 15.0, 1.0)
    assert OscillatingGuidance(constant_fraction=0.0).weights(3) == (1.0, 15.0, 1.0)
    assert OscillatingGuidance(constant_fraction=1.0).weights(3) == (15.0,) * 3
    assert OscillatingGuidance(constant_steps=9).weights(3) == (15.0,) * 3
    assert ConstantGuidance(weight=6.0).weights(3) == (6.0,) * 3


def test_records_and_errors():
    for record in (ConstantGuidance(weight=6.0), OscillatingGuidance(constant_steps=4)):
        assert records.from_dict(type(record), records.to_dict(record)) == record
    with pytest.raises(ValueError, match=r"constant_fraction: 1.5 must be in \[0, 1\]"):
        OscillatingGuidance(constant_fraction=1.5)
    with pytest.raises(ValueError, match="constant_steps: -1 must not be negative"):
        OscillatingGuidance(constant_steps=-1)
    with pytest.raises(ValueError, match="weights"):
        guidance.guided(denoise, conditioning(), weights=[], thresholding=NoThreshold())
