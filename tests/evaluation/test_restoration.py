"""Stages judged from true inputs, beside resizing as other libraries compute it."""

import dataclasses
import json

import jax
import micro_cascade
import numpy as np
import pytest

from imagen_video.cascade.cascade import Cascade
from imagen_video.cascade.options import SamplingOptions
from imagen_video.cascade.stage import Grid, stage_param_shapes
from imagen_video.cascade.weights import make_stage_model
from imagen_video.cli.main import main
from imagen_video.diffusion.augmentation import AugmentationLevel
from imagen_video.diffusion.guidance import ConstantGuidance
from imagen_video.evaluation import restoration
from imagen_video.evaluation.job import EvaluationJob
from imagen_video.evaluation.restoration import run_restoration, summarise, table
from imagen_video.files import held
from imagen_video.loading import load_cascade
from imagen_video.sampling.steppers import DDIM

JOB = EvaluationJob(num_prompts=4, num_samples=1)
ERROR = 1e-3


def adds_nothing(stage):
    """An untrained stage whose network gives 0, which it takes for its input resized."""
    sampling = dataclasses.replace(
        stage.sampling,
        num_steps=2,
        stepper=DDIM(),
        guidance=ConstantGuidance(weight=0.0),
        augmentation=AugmentationLevel(snr=1e6),
    )
    stage = dataclasses.replace(stage, low_res_error=ERROR, sampling=sampling)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), stage_param_shapes(stage))
    return make_stage_model(stage, zeros, text_digest=micro_cascade.text_model().digest)


@pytest.fixture(scope="module")
def cascade():
    """Three stages, of which two restore."""
    base = micro_cascade.stage_model(micro_cascade.BASE)
    rest = map(adds_nothing, (micro_cascade.TSR1, micro_cascade.SSR1))
    return Cascade(models=(base, *rest), text=micro_cascade.text_model())


def test_a_folder_is_one_runs_at_a_time(cascade, tmp_path):
    with held(tmp_path), pytest.raises(ValueError, match="another run is at work there"):
        run_restoration(cascade, JOB, tmp_path)


def resized_elsewhere(truth, *, frames, height, width):
    """A clip brought down and up again, by jax.image and numpy."""
    f, h, w, _ = truth.shape
    small = jax.image.resize(
        truth[:: f // frames], (frames, height, width, 3), "bilinear", antialias=True
    )
    large = jax.image.resize(small, (frames, h, w, 3), "bilinear", antialias=True)
    return np.repeat(large, f // frames, axis=0)


@pytest.mark.parametrize(
    ("low", "high"), [((4, 12, 20), (8, 12, 20)), ((4, 12, 20), (4, 24, 40))], ids=["time", "space"]
)
def test_the_input_and_its_resizing_are_those_of_other_libraries(low, high):
    stage = dataclasses.replace(
        micro_cascade.TSR1, input=Grid(**grid(low)), output=Grid(**grid(high))
    )
    prompt = "a red star moving left on a white background"
    truth = restoration.true_clips(stage, [(prompt, 0)], seed=1)
    assert truth.shape == (1, *high, 3) and truth.dtype == np.float32
    assert -1 <= truth.min() < -0.5 and 0.9 < truth.max() <= 1
    low_res = restoration.low_res_input(stage, truth)
    assert low_res.shape == (1, *low, 3)
    ours = restoration.resized(stage, low_res)[0]
    np.testing.assert_allclose(ours, resized_elsewhere(truth[0], **grid(low)), atol=1e-5)
    assert np.abs(ours - truth[0]).max() > 0.1


def grid(shape):
    return dict(zip(("frames", "height", "width"), shape))


def test_every_stage_is_judged_on_its_own_grid_beside_resizing(cascade, tmp_path):
    told = []
    results = run_restoration(
        cascade, JOB, tmp_path, batch_size=2, progress=lambda **step: told.append(step)
    )
    assert json.loads((tmp_path / "restoration.json").read_text()) == results
    assert list(results) == ["tsr1", "ssr1"]
    for model in cascade.models[1:]:
        stage, result = model.stage, results[model.stage.name]
        samples = [(prompt, 0) for prompt in JOB.request().prompts]
        assert [(clip["prompt"], clip["index"]) for clip in result["clips"]] == samples
        small = dataclasses.asdict(stage.input)
        errors = [
            np.mean((resized_elsewhere(clip, **small) - clip) ** 2)
            for clip in restoration.true_clips(stage, samples, seed=0)
        ]
        expected = 10 * np.log10(4 / np.array(errors))
        resized = [clip["resized"] for clip in result["clips"]]
        np.testing.assert_allclose(resized, np.minimum(expected, 58.92), atol=0.01)
        # What adds nothing to the resized clip is as near as it, to the noise it believes in.
        np.testing.assert_allclose([c["stage"] for c in result["clips"]], resized, atol=1.0)
        steps = [step for step in told if step["stage"] == stage.name]
        assert [step["step"] for step in steps] == [0, 2, 4, 4, 6, 8]
        assert {step["num_steps"] for step in steps} == {8}


def test_means_and_standard_errors_are_those_of_a_sample():
    clips = [{"stage": 30.0, "resized": 28.0}, {"stage": 34.0, "resized": 30.0}]
    summary = summarise(clips)
    assert summary["psnr"] == {"stage": 32.0, "resized": 29.0, "gain": 3.0}
    assert summary["standard_error"] == pytest.approx({"stage": 2.0, "resized": 1.0, "gain": 1.0})
    one = summarise(clips[:1])
    assert one["standard_error"]["stage"] is None
    assert "30.00" in table({"ssr1": {"grid": "8x8x16", **one}})


def test_it_goes_on_where_it_stopped_and_refuses_the_results_of_others(
    cascade, tmp_path, monkeypatch
):
    sampled = []
    sample_stage = restoration.sample_stage

    def counted(model, *args, **kwargs):
        sampled.append((model.stage.name, len(kwargs["low_res"])))
        return sample_stage(model, *args, **kwargs)

    def run(job=JOB):
        return run_restoration(cascade, job, tmp_path, batch_size=2)

    monkeypatch.setattr(restoration, "sample_stage", counted)
    first = run(dataclasses.replace(JOB, through="tsr1"))
    assert sampled == [("tsr1", 2)] * 2
    whole = run()
    assert sampled[2:] == [("ssr1", 2)] * 2 and whole["tsr1"] == first["tsr1"]
    # Killed after two clips of tsr1.
    path = tmp_path / "restoration.json"
    cut = json.loads(path.read_text())
    cut["tsr1"]["clips"] = cut["tsr1"]["clips"][:2]
    path.write_text(json.dumps(cut))
    again = run()
    assert sampled[4:] == [("tsr1", 2)]
    for ours, theirs in zip(again["tsr1"]["clips"], whole["tsr1"]["clips"]):
        assert ours == pytest.approx(theirs, abs=1e-3)
    with pytest.raises(ValueError, match="tsr1 is of other weights or another request"):
        run(dataclasses.replace(JOB, seed=1))
    path.write_text("{")
    with pytest.raises(ValueError, match="not written by this command"):
        run()
    assert len(sampled) == 5


def test_killed_in_its_first_stage_it_has_results_of_no_other(cascade, tmp_path, monkeypatch):
    rows = []
    sample_stage = restoration.sample_stage

    def killed_later(*args, **kwargs):
        rows.append(len(kwargs["low_res"]))
        if len(rows) == 2:
            raise KeyboardInterrupt
        return sample_stage(*args, **kwargs)

    monkeypatch.setattr(restoration, "sample_stage", killed_later)
    with pytest.raises(KeyboardInterrupt):
        run_restoration(cascade, dataclasses.replace(JOB, num_prompts=3), tmp_path, batch_size=2)
    assert rows == [2, 1]
    kept = json.loads((tmp_path / "restoration.json").read_text())
    assert list(kept) == ["tsr1"] and len(kept["tsr1"]["clips"]) == 2


def test_an_option_that_a_later_stage_cannot_take_is_told_before_sampling(cascade, tmp_path):
    base, tsr1, ssr1 = cascade.models
    student = dataclasses.replace(ssr1.stage, distilled_steps=2)
    mixed = dataclasses.replace(
        cascade, models=(base, tsr1, dataclasses.replace(ssr1, stage=student))
    )
    job = dataclasses.replace(JOB, options=SamplingOptions(steps=4))
    told = []
    with pytest.raises(ValueError, match="steps: 4, but these weights of ssr1"):
        run_restoration(mixed, job, tmp_path / "new", progress=lambda **step: told.append(step))
    assert not told and not (tmp_path / "new").exists()


def test_the_base_model_has_nothing_to_restore(cascade, tmp_path):
    with pytest.raises(ValueError, match="through: base has no input"):
        run_restoration(cascade, dataclasses.replace(JOB, through="base"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_prints_the_table(tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    micro_cascade.write_weights(weights)
    argv = ["evaluate", "--from_truth", "--num_prompts=2", "--num_samples=1", "--steps=1"]
    argv += [f"--weights={weights}", f"--out={tmp_path / 'out'}"]
    assert main([*argv, "--through=tsr1"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == "stage grid PSNR, dB of resizing gain".split()
    assert line.split()[:2] == ["tsr1", "8x4x8"]
    result = json.loads((tmp_path / "out" / "restoration.json").read_text())["tsr1"]
    assert line.split()[2] == f"{result['psnr']['stage']:.2f}"
    # A network of drawn numbers restores nothing.
    assert result["psnr"]["gain"] < -5
    assert main([*argv, "--through=base"]) == 2
    assert "base has no input" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_stages_are_nearer_to_the_truth_than_resizing(tmp_path):
    # Guidance and conditioning noise make ssr1 draw what the caption says, sharp but at a place of
    # its own, which PSNR punishes: without them it must restore what it is given.
    def faithful(model):
        sampling = model.stage.sampling
        if model.stage.input is not None:
            sampling = dataclasses.replace(
                sampling,
                guidance=ConstantGuidance(weight=0.0),
                augmentation=AugmentationLevel(snr=10_000.0),
            )
        stage = dataclasses.replace(model.stage, sampling=sampling)
        return dataclasses.replace(model, stage=stage)

    cascade = load_cascade(through="ssr1")
    cascade = dataclasses.replace(cascade, models=tuple(map(faithful, cascade.models)))
    job = EvaluationJob(num_prompts=8, num_samples=1, through="ssr1")
    results = run_restoration(cascade, job, tmp_path)
    for result in results.values():
        assert result["psnr"]["gain"] > 2 * result["standard_error"]["gain"] > 0
