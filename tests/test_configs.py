"""The configs as a whole: the paper's parameter counts, a chain that fits, sizes that build."""

import dataclasses
import json

import numpy as np
import pytest

from imagen_video import records, resample
from imagen_video.cascade.cascade import check_chain
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.stage import STAGE_NAMES, Stage
from imagen_video.cli.main import main
from imagen_video.config import load_config, to_record
from imagen_video.data.captioned_shapes import grammar
from imagen_video.diffusion.guidance import GuidanceRange, OscillatingGuidance
from imagen_video.diffusion.thresholding import DynamicThreshold, StaticClip
from imagen_video.profiling.description import count_params, describe_stage
from imagen_video.sampling.steppers import DDIM, StochasticDistilled
from imagen_video.text.t5_encoder import T5Config
from imagen_video.text.text_model import TextPaths, load_text_model
from imagen_video.training.optimizer import make_schedule
from imagen_video.training.rungs import DistillRun, ladder
from imagen_video.training.stage_run import StageRun, make_batches
from imagen_video.training.text_run import TextRun

# arXiv 2210.02303, Fig. 6: frames x width x height, fps, parameters.
PUBLISHED = {
    "base": ("16x40x24", 3, 5.6e9),
    "tsr1": ("32x40x24", 6, 1.7e9),
    "ssr1": ("32x80x48", 6, 1.4e9),
    "ssr2": ("32x320x192", 6, 1.2e9),
    "tsr2": ("64x320x192", 12, 780e6),
    "tsr3": ("128x320x192", 24, 630e6),
    "ssr3": ("128x1280x768", 24, 340e6),
}


def stages(size):
    config = load_config(f"configs/cascade.py:{size}")
    return {name: to_record(Stage, config.stages[name]) for name in STAGE_NAMES}


def described(capsys, *flags):
    assert main(["describe", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_full_size_stages_have_the_published_shapes_and_parameters(capsys):
    description = described(capsys)
    assert [row["name"] for row in description["stages"]] == list(PUBLISHED)
    for row in description["stages"]:
        shape, fps, params = PUBLISHED[row["name"]]
        assert f"{row['frames']}x{row['width']}x{row['height']}" == shape
        assert row["fps"] == fps
        assert row["params"] == pytest.approx(params, rel=0.02)
    assert description["total_params"] == sum(row["params"] for row in description["stages"])
    assert description["total_params"] == pytest.approx(11.6e9, rel=0.015)
    assert description["text_encoder_params"] == 4_630_714_368
    # The paper's "about 36 times", measured at 192x320, before the last stage.
    assert 35 < description["distillation_flops_ratio"] < 37
    assert 32 < description["distillation_flops_ratio_all"] < 64


@pytest.mark.parametrize(
    ("size", "params"), [("1.6b", 1.6e9), pytest.param("500m", 500e6, marks=pytest.mark.slow)]
)
def test_smaller_base_models_have_the_parameters_of_the_scaling_study(size, params):
    stage = to_record(Stage, load_config(f"configs/stages/base.py:{size}").stage)
    assert describe_stage(stage).params == pytest.approx(params, rel=0.02)


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_every_stage_feeds_the_next_and_survives_a_round_trip_through_json(size):
    found = stages(size)
    check_chain(list(found.values()))
    for stage in found.values():
        text = json.dumps(records.to_dict(stage))
        assert records.from_dict(Stage, json.loads(text)) == stage


def test_a_stage_that_does_not_fit_the_one_before_is_refused_by_name():
    found = stages("tiny")
    with pytest.raises(ValueError, match=r"ssr2\.input"):
        check_chain([found["base"], found["tsr1"], found["ssr2"]])


def test_published_sampling_is_that_of_table_1():
    for name, stage in stages("tiny").items():
        sampling = SamplingOptions(steps="published").sampling(stage)
        assert sampling.num_steps == (256 if name == "base" else 128)
    full = stages("full")
    assert full["base"].sampling.guidance.weights(256) == (6.0,) * 256
    for name, stage in full.items():
        assert stage.sampling.num_steps == (256 if name == "base" else 128)
        assert isinstance(stage.sampling.thresholding, StaticClip)
        oscillates = SamplingOptions(guidance="oscillating").sampling(stage)
        if name in ("base", "tsr1", "ssr1"):  # section 2.6.2
            assert oscillates.guidance == OscillatingGuidance(high=15.0, low=1.0)
            assert isinstance(oscillates.thresholding, DynamicThreshold)
        else:
            assert oscillates == stage.sampling


def test_published_steps_tell_the_seconds_of_table_1():
    """618, 135 and 35 s: nothing distilled, all but the base, all; the branches run in parallel.

    So a step of a stage takes as long in every row, and two unknowns explain three numbers up to
    their rounding, which they would not if students took 4 or 16 steps.
    """
    original = {name: stage.sampling.num_steps for name, stage in stages("full").items()}
    distilled = {}
    for name in STAGE_NAMES:
        config = load_config(f"configs/distill.py:{name}", {"teacher": "x"})
        distilled[name] = ladder(to_record(DistillRun, config))[-1].stage.sampling.num_steps
    rows = [original, distilled | {"base": original["base"]}, distilled]
    assert all(len({row[name] for name in STAGE_NAMES[1:]}) == 1 for row in rows)
    steps = np.array([[row["base"], row["ssr1"]] for row in rows])
    seconds = np.array([618, 135, 35])
    # Differences, in which a constant overhead cancels.
    base, others = np.linalg.solve(np.diff(steps, axis=0), np.diff(seconds))
    np.testing.assert_allclose([base, others], [0.403226, 4.025], atol=1e-6)
    predicted = steps @ [base, others]
    np.testing.assert_allclose(predicted, [618.43, 135.43, 35.43], atol=5e-3)
    np.testing.assert_allclose(predicted, seconds, atol=0.5)
    # The paper's "18 times": 16 + 16 b with b the base's share of the seconds of a step of all.
    assert predicted[0] / predicted[2] == pytest.approx(17.457, abs=5e-4)


def test_every_stage_lasts_as_long_and_the_last_has_the_published_pixels():
    grids = {name: (stage.output, stage.fps) for name, stage in stages("full").items()}
    assert all(grid.frames / fps == pytest.approx(16 / 3) for grid, fps in grids.values())
    last = grids["ssr3"][0]
    assert last.frames * last.height * last.width == 125_829_120  # "126 million"


def test_a_linear_augmentation_snr_is_stored_as_log_snr():
    stage = stages("full")["ssr1"]
    assert stage.sampling.augmentation.logsnr == pytest.approx(np.log(5))


@pytest.mark.parametrize("size", ["full", "tiny"])
@pytest.mark.parametrize("name", STAGE_NAMES)
def test_every_training_config_builds(name, size):
    run = to_record(StageRun, load_config(f"configs/stages/{name}.py:{size}"))
    assert run.stage.name == name
    assert run.stage == stages(size)[name]


def check_published_training(rungs):
    """As the codes of Salimans & Ho (2202.00512) and of Meng et al. (2210.03142) train a student.

    The guided rung's learning rate and length are not compared: theirs differ from run to run.
    """
    for rung in rungs:
        optimizer = rung.train.optimizer
        assert (optimizer.name, optimizer.b1, optimizer.b2) == ("adam", 0.9, 0.999)
        assert (optimizer.warmup_steps, optimizer.clip_norm) == (0, 1.0)
    guided, *halvings = rungs if rungs[0].name == "guided" else (None, *rungs)
    assert guided is None or guided.train.ema_decay == 0.9999
    assert len(halvings) == sum(rung.name.startswith("steps_") for rung in rungs) >= 5
    for rung in halvings:
        train = rung.train
        assert (train.num_steps, train.ema_decay) == (50_000, 0.0)
        assert rung.objective.loss == "snr_trunc"
        # Of updates made: from 1e-4 at once to 0 at the end of this halving, not of the ladder.
        rate = make_schedule(train.optimizer, train.num_steps)
        found = [float(rate(updates)) for updates in (0, 12_500, 25_000, 37_500, 50_000)]
        np.testing.assert_allclose(found, [1e-4, 7.5e-5, 5e-5, 2.5e-5, 0], rtol=1e-6)


@pytest.mark.parametrize("size", ["full", "tiny"])
@pytest.mark.parametrize("name", STAGE_NAMES)
def test_every_ladder_builds(name, size):
    config = load_config(f"configs/distill.py:{name},{size}", {"teacher": "somewhere"})
    run = to_record(DistillRun, config)
    rungs = ladder(run)
    assert run.stage == stages(size)[name]
    final = 4 if size == "tiny" and name != "base" else 8  # Table 1, or the demo's own
    assert rungs[-1].stage.distilled_steps == final
    assert all(rung.stage.distilled_guidance == run.distillation.guidance for rung in rungs)
    stepper = DDIM if (name, size) == ("base", "tiny") else StochasticDistilled
    assert isinstance(rungs[-1].stage.sampling.stepper, stepper)
    assert not any(rungs[-1].stage.sampling.guidance.weights(final))
    weight = run.stage.sampling.guidance
    assert (rungs[0].name == "guided") == (weight.weight != 0)
    if size == "full":  # Table 1
        start = 256 if name == "base" else 128
        assert run.distillation.start_steps == rungs[0].stage.sampling.num_steps == start
        assert [rung.stage.sampling.num_steps for rung in rungs[1:]] == [
            *(start // 2**k for k in range(6 if name == "base" else 5))
        ]
        assert rungs[0].objective.guidance == weight
        assert rungs[0].objective.thresholding == run.stage.sampling.thresholding
        check_published_training(rungs)


def test_ladders_of_other_guidance():
    for name in ("base", "tsr1", "ssr1"):  # section 2.6.2
        config = load_config(f"configs/distill.py:{name},full,oscillating", {"teacher": "x"})
        objective = ladder(to_record(DistillRun, config))[0].objective
        assert objective.guidance == OscillatingGuidance(high=15.0, low=1.0)
        assert isinstance(objective.thresholding, DynamicThreshold)
    config = load_config("configs/distill.py:base,1.6b,range", {"teacher": "x"})
    rungs = ladder(to_record(DistillRun, config))
    assert all(rung.stage.unet.guidance_weight for rung in rungs)
    assert isinstance(rungs[-1].objective.guidance, GuidanceRange)


def test_what_is_set_of_one_rung_is_that_of_no_other_nor_of_the_stage():
    path = "configs/distill.py:base,tiny,oscillating"
    plain = load_config(path)
    changes = {
        "guided.optimizer.learning_rate": 0.5,
        "guided.optimizer.warmup_steps": 7,
        "distillation.guidance.high": 3.0,
        "distillation.thresholding.percentile": 90.0,
    }
    changed = load_config(path, changes)
    assert changed.halving == plain.halving and changed.stage == plain.stage
    assert changed.guided.optimizer.learning_rate == 0.5
    assert changed.distillation.guidance.high == 3.0


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("bass", "'bass' is not STAGE"),
        ("base,tiny,constant", "is not STAGE"),
        ("base,tiny,range,more", "is not STAGE"),
        ("base,huge", "size 'huge' is not one of"),
        ("ssr3,tiny,oscillating", "ssr3 has no oscillating guidance"),
    ],
)
def test_ladders_that_there_are_not(which, message):
    with pytest.raises(ValueError, match=message):
        load_config(f"configs/distill.py:{which}")


def test_super_resolution_stages_train_on_the_published_short_clips_and_crops():
    ssr2 = to_record(StageRun, load_config("configs/stages/ssr2.py"))
    assert ssr2.data.train_frames == 8  # Fig. 12
    ssr3 = to_record(StageRun, load_config("configs/stages/ssr3.py"))
    assert ssr3.data.train_crop is not None  # section 2.3


@pytest.mark.parametrize(
    ("override", "value", "message"),
    [
        ("data.train_frames", 3, "train_frames"),
        ("data.train_crop", (20, 24), "not a multiple"),
        ("data.train_crop", (512, 512), "larger than"),
    ],
)
def test_impossible_training_windows_are_refused(override, value, message):
    config = load_config("configs/stages/tsr2.py:tiny", {override: value})
    with pytest.raises(ValueError, match=message):
        to_record(StageRun, config)


def test_the_text_encoder_config_builds():
    assert to_record(TextRun, load_config("configs/text_encoder.py")).encoder.emb_dim == 128


def test_the_embedded_text_model_is_the_one_that_the_configs_describe():
    config = load_config("configs/cascade.py:tiny")
    text = load_text_model(TextPaths(), num_tokens=32)
    assert text.encoder.config == to_record(T5Config, config.text_encoder)
    encoder = to_record(TextRun, load_config("configs/text_encoder.py")).encoder
    assert text.encoder.config.emb_dim == encoder.emb_dim == stages("tiny")["base"].unet.text_in_dim


def test_the_embedded_tokenizer_keeps_the_grammar_in_one_piece_and_loses_no_caption():
    text = load_text_model(TextPaths(), num_tokens=32)
    words = " ".join((*grammar.COLOURS, *grammar.FORMS, *grammar.MOTIONS)).split()
    assert all(len(text.tokenizer.encode(word)) == 1 for word in words)
    source = to_record(TextRun, load_config("configs/text_encoder.py")).data
    lengths = [len(text.tokenizer.encode(source.caption(index))) for index in range(500)]
    assert max(lengths) < 32


def test_the_tiny_cascade_fits_the_package():
    found = stages("tiny")
    total = sum(describe_stage(stage).params for stage in found.values())
    assert 2 * total <= 16 * 2**20  # bytes, at two a parameter
    assert count_params({}) == 0


@pytest.mark.parametrize("name", [name for name in STAGE_NAMES if name != "base"])
def test_the_demos_low_res_error_is_about_that_of_its_clips(name):
    run = to_record(StageRun, load_config(f"configs/stages/{name}.py:tiny"))
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, image_share=0.0),
        train=dataclasses.replace(run.train, batch_size=48),
    )
    stage, text = run.stage, load_text_model(TextPaths(), num_tokens=run.stage.text_tokens)
    x = make_batches(run, text)[0]["video"]
    _, frames, height, width, _ = x.shape
    low_res = resample.downsample(
        x,
        frames=frames // stage.frame_factor,
        height=height // stage.size_factor,
        width=width // stage.size_factor,
    )
    guess = resample.upsample(low_res, frames=frames, height=height, width=width, fill=stage.fill)
    error = np.sqrt(np.mean(np.square(x - guess)))
    assert error / 1.5 < stage.low_res_error < 1.5 * error
