"""From files to cascades: students where they are asked for, and never by mistake."""

import dataclasses

import jax
import pytest
from micro_cascade import BASE, TSR1, drawn_params, text_model, write_weights

from imagen_video.cascade import stage_sampler
from imagen_video.cascade.weights import save_stage
from imagen_video.config import load_config
from imagen_video.diffusion.guidance import ConstantGuidance, OscillatingGuidance
from imagen_video.loading import load_cascade, load_stage_weights
from imagen_video.sampling.steppers import StochasticDistilled

STAGES = (BASE, TSR1)


def student_of(stage, num_steps=2):
    sampling = dataclasses.replace(
        stage.sampling,
        num_steps=num_steps,
        stepper=StochasticDistilled(),
        guidance=ConstantGuidance(weight=0.0),
    )
    return dataclasses.replace(
        stage, sampling=sampling, oscillating=None, distilled_steps=num_steps
    )


def test_a_config_does_not_say_what_weights_were_trained_for(weights):
    path = weights / "tsr1.safetensors"

    def loaded_as(**fields):
        return load_stage_weights(path, stage=dataclasses.replace(TSR1, **fields))

    for fields, message in (
        ({"prediction": "x"}, r"tsr1\.safetensors: stage\.prediction is v, in this config it is x"),
        ({"fill": "blank"}, r"stage\.fill is repeat, in this config it is blank"),
        ({"low_res_error": 0.5}, r"stage\.low_res_error is None, in this config it is 0\.5"),
        (
            {"unet": dataclasses.replace(TSR1.unet, max_frames=TSR1.unet.max_frames + 1)},
            r"stage\.unet\.max_frames is",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            loaded_as(**fields)
    unet = dataclasses.replace(TSR1.unet, remat="products", unrolled_levels=1)
    schedule = dataclasses.replace(TSR1.schedule, logsnr_max=15.0)
    assert loaded_as(unet=unet, schedule=schedule).stage.unet == unet


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Originals, and students with other parameters beside them."""
    folder = write_weights(tmp_path_factory.mktemp("weights"), STAGES)
    (folder / "distilled").mkdir()
    for stage in STAGES:
        save_stage(
            str(folder / "distilled" / f"{stage.name}.safetensors"),
            student_of(stage),
            drawn_params(stage, seed=1),
            text_digest=text_model().digest,
            dtype="float32",
        )
    return folder


def test_students_are_loaded_where_they_are_asked_for(weights):
    original, distilled = (
        load_cascade(weights=weights),
        load_cascade(weights=weights, distilled=True),
    )
    assert original.stages == STAGES
    assert distilled.stages == tuple(map(student_of, STAGES))
    assert original.models[0].digest != distilled.models[0].digest
    assert load_cascade(weights=weights, distilled="none").stages == STAGES
    for choice, steps in (("sr", [None, 2]), ("base", [2, None]), ("base,tsr1", [2, 2])):
        chosen = load_cascade(weights=weights, distilled=choice)
        assert [stage.distilled_steps for stage in chosen.stages] == steps
    # A student's file alone is enough, also beside originals: SR stages distilled, base not.
    mixed = load_cascade(
        weights={
            "base": weights / "base.safetensors",
            "tsr1": weights / "distilled" / "tsr1.safetensors",
        }
    )
    assert [stage.distilled_steps for stage in mixed.stages] == [None, 2]


def test_a_student_is_evaluated_once_a_step(weights, monkeypatch):
    """Counted in the program: rows of the network's calls."""
    rows = []
    bind = stage_sampler.denoise_fn

    def counting(stage, params, *, layout=None):
        denoise = bind(stage, params, layout=layout)

        def counted(z_t, logsnr_t, cond):
            jax.debug.callback(lambda z: rows.append(len(z)), z_t)
            return denoise(z_t, logsnr_t, cond)

        return counted

    monkeypatch.setattr(stage_sampler, "denoise_fn", counting)
    cascade = load_cascade(weights=weights)
    clips = cascade.sample(["a red circle"] * 3, through="base", distilled=True)
    jax.effects_barrier()
    assert rows == [3, 3] and clips.shape == (3, 4, 4, 8, 3)
    with pytest.raises(ValueError, match="base were distilled for 2 steps"):
        cascade.sample(["a red circle"], steps=256, distilled=True)


def test_students_are_never_taken_by_mistake(weights, tmp_path):
    only_originals = write_weights(tmp_path, (BASE,))
    with pytest.raises(ValueError, match="distilled: there are no distilled weights"):
        load_cascade(weights=only_originals, distilled=True)
    with pytest.raises(ValueError, match="distilled: there are no distilled weights"):
        load_cascade(weights=only_originals).sample(["a red circle"], distilled=True)
    (only_originals / "distilled").mkdir()
    (only_originals / "base.safetensors").rename(only_originals / "distilled/base.safetensors")
    with pytest.raises(ValueError, match=r"base\.safetensors: holds no distilled weights"):
        load_cascade(weights=only_originals, distilled=True)
    with pytest.raises(ValueError, match=r"distilled: .* has no student of tsr1"):
        lacks = tmp_path / "lacks"
        (lacks / "distilled").mkdir(parents=True)
        write_weights(lacks, STAGES)
        load_cascade(weights=lacks, distilled="sr")
    with pytest.raises(ValueError, match="distilled: 'ssr' is none of all, sr, none, base"):
        load_cascade(weights=weights, distilled="ssr")
    with pytest.raises(ValueError, match=r"base\.safetensors: holds no distilled weights"):
        load_cascade(weights={"base": weights / "base.safetensors"}, distilled=True)
    # A config's stage knows nothing of the steps.
    with pytest.raises(ValueError, match="distilled for 2 steps, which the config's base is not"):
        load_stage_weights(weights / "distilled" / "base.safetensors", stage=BASE)
    folded = dataclasses.replace(
        BASE,
        sampling=dataclasses.replace(BASE.sampling, guidance=ConstantGuidance(weight=0.0)),
        distilled_guidance=ConstantGuidance(weight=2.0),
    )
    path = tmp_path / "folded.safetensors"
    digest = text_model().digest
    save_stage(str(path), folded, drawn_params(BASE), text_digest=digest, dtype="float32")
    with pytest.raises(ValueError, match=r"guidance is folded into these weights of base, which"):
        load_stage_weights(path, stage=BASE)
    with pytest.raises(ValueError, match="no student of ssr1"):
        load_cascade(
            load_config("configs/cascade.py:tiny"),
            weights=weights,
            distilled=True,
            through="tsr2",
        )


def test_students_of_oscillating_guidance_are_their_own(weights, tmp_path):
    folder = write_weights(tmp_path, STAGES)
    students = {}
    for place, seed, guidance in (
        ("distilled", 1, ConstantGuidance(weight=2.0)),
        ("distilled/oscillating", 2, OscillatingGuidance(high=15.0, low=1.0)),
    ):
        (folder / place).mkdir()
        student = dataclasses.replace(student_of(BASE), distilled_guidance=guidance)
        students[place] = student
        save_stage(
            str(folder / place / "base.safetensors"),
            student,
            drawn_params(BASE, seed=seed),
            text_digest=text_model().digest,
            dtype="float32",
        )
    cascade = load_cascade(weights=folder)
    constant = cascade.with_students("base")
    oscillating = cascade.with_students("base", guidance="oscillating:base")
    assert constant.stages == (students["distilled"], TSR1)
    assert oscillating.stages == (students["distilled/oscillating"], TSR1)
    # Loaded once, however it is said; what cascades have in common is in memory once.
    for distilled, guidance in (("base,base", "constant"), ("base", "oscillating:tsr1")):
        assert cascade.with_students(distilled, guidance=guidance) is constant
    assert constant.models[1] is oscillating.models[1] is cascade.models[1]
    assert constant.text is cascade.text
    a, b = (
        cascade.sample(["a red circle"], through="base", distilled="base", guidance=guidance)
        for guidance in ("constant", "oscillating")
    )
    assert (a != b).any()
    # tsr1 would oscillate too, but has no such student.
    missing = r"distilled: .* has no student of tsr1 in 'distilled/oscillating'"
    with pytest.raises(ValueError, match=missing):
        load_cascade(weights=folder, distilled="base,tsr1", guidance="oscillating")
    with pytest.raises(ValueError, match=r"guidance: 'oscillating', .* with another guidance"):
        constant.sample(["a red circle"], through="base", guidance="oscillating")
    with pytest.raises(ValueError, match=r"guidance: 'constant', .* say 'oscillating:base'"):
        oscillating.sample(["a red circle"], through="base")
