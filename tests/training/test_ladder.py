"""The ladder from a trained stage to few steps: its rungs, its bits after a kill, its failures."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_network
from micro_cascade import BASE, SSR1, TSR1, drawn_params, stage_run, text_model

from imagen_video.array_types import Conditioning
from imagen_video.cascade.stage import denoise_fn
from imagen_video.cascade.weights import save_stage
from imagen_video.diffusion.guidance import ConstantGuidance, GuidanceRange, OscillatingGuidance
from imagen_video.diffusion.thresholding import DynamicThreshold, StaticClip
from imagen_video.files import held
from imagen_video.loading import load_stage_weights
from imagen_video.sampling.steppers import DDIM, StochasticDistilled
from imagen_video.training import distillation as distillation_module
from imagen_video.training import ladder as ladder_module
from imagen_video.training import ladder_files
from imagen_video.training.checkpoints import restore_params
from imagen_video.training.export import export_run
from imagen_video.training.ladder import distill, student_start
from imagen_video.training.optimizer import OptimizerConfig
from imagen_video.training.rungs import Distillation, DistillRun, ladder
from imagen_video.training.stage_run import make_batches

# Without attention the training step compiles in half the time.
PLAIN = dataclasses.replace(BASE.unet, attention=("none",), temporal="convolution")
STAGE = dataclasses.replace(BASE, unet=PLAIN)
CONSTANT = ConstantGuidance(weight=2.0)


def run_of(stage=STAGE, teacher="unused", *, train=None, **distillation):
    """A ladder of rungs of two training steps."""
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0, schedule="linear")
    fields = {"num_steps": 2, "checkpoint_every": 1, "ema_decay": 0.0, "optimizer": optimizer}
    trained = stage_run(stage, **fields | (train or {}))
    defaults = {"guidance": CONSTANT, "start_steps": 4, "final_steps": 2, "eval_clips": 2}
    return DistillRun(
        stage=stage,
        teacher=str(teacher),
        distillation=Distillation(**defaults | {"sampler": "ddim"} | distillation),
        data=trained.data,
        text=trained.text,
        guided=trained.train,
        halving=trained.train,
    )


def write_teacher(folder, stage=STAGE):
    path = folder / f"{stage.name}.safetensors"
    digest = text_model().digest
    save_stage(str(path), stage, drawn_params(stage), text_digest=digest, dtype="float32")
    return path


def climb(run, workdir):
    return list(distill(run, text=text_model(), workdir=str(workdir)))


def weights(workdir, name):
    params, _ = restore_params(str(workdir / name / "checkpoints"))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


class Killed:
    """Batches that send SIGTERM when number `at` of all that are fetched is."""

    left = 0

    def __init__(self, run, text, layout=None):
        self._batches = make_batches(run, text, layout)

    def __next__(self):
        Killed.left -= 1
        if Killed.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self._batches)

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        self._batches.set_state(state)

    def close(self):
        self._batches.close()


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A ladder of a network that compiles at once."""
    return run_of(toy_network.STAGE, toy_network.install(monkeypatch, tmp_path))


def fail(*args, **kwargs):
    raise RuntimeError("crash")


@pytest.fixture
def undisturbed(tmp_path, toy):
    """Results and weights of a ladder that nothing happened to."""
    results = climb(toy, tmp_path / "undisturbed")
    assert [result.name for result in results] == ["guided", "steps_0002"]
    for result in results:
        assert 0 < result.error < result.error_before
        assert result.sample_difference > 0 and result.skipped == 0
    found = [weights(tmp_path / "undisturbed", result.name) for result in results]
    assert found[0] != found[1]
    return results, found


def interrupted(run, workdir, monkeypatch, at):
    """Ends a ladder at its `at`-th training step by a signal, or in a function by a crash."""
    with monkeypatch.context() as patched, pytest.raises((SystemExit, RuntimeError)):
        if isinstance(at, int):
            patched.setattr(ladder_module, "make_batches", Killed)
            Killed.left = at
        elif at == "write_evaluation":
            patched.setattr(ladder_files, at, fail)
        else:
            patched.setattr(ladder_module, at, fail)
        climb(run, workdir)
    assert not (workdir / "steps_0002" / "evaluation.json").exists()
    with pytest.raises(ValueError, match="the ladder is not finished"):
        load_stage_weights(workdir)


def test_a_killed_ladder_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path, toy, undisturbed, monkeypatch
):
    (results, wanted), workdir = undisturbed, tmp_path / "killed"
    # In the second rung, then between its training and its measurement.
    for at in (3, "sample_difference"):
        interrupted(toy, workdir, monkeypatch, at)
    assert climb(toy, workdir) == results
    assert [weights(workdir, result.name) for result in results] == wanted

    # A finished ladder is only read, also one that was begun before its U-Net had all its fields.
    (tmp_path / "base.safetensors").unlink()
    for result in results:
        config = workdir / result.name / "config.json"
        begun = json.loads(config.read_text())
        del begun["run"]["stage"]["unet"]["project_skips"]
        config.write_text(json.dumps(begun))
    assert climb(toy, workdir) == results

    # Whoever else climbs it keeps others out.
    with held(workdir), pytest.raises(ValueError, match="another run is at work there"):
        climb(toy, workdir)

    # The last student samples alone.
    (path,) = export_run(str(workdir), tmp_path / "out", dtype="float32")
    model = load_stage_weights(path)
    assert model.stage == ladder(toy)[-1].stage and model.stage.distilled_steps == 2
    assert model.digest == load_stage_weights(workdir).digest

    # Another configuration must not go on from here.
    other = dataclasses.replace(toy, halving=dataclasses.replace(toy.halving, seed=9))
    message = r"steps_0002: was begun with another train\.seed \(1, now 10\)"
    with pytest.raises(ValueError, match=message):
        climb(other, workdir)


@pytest.mark.slow
def test_a_ladder_may_be_killed_anywhere(tmp_path, toy, undisturbed, monkeypatch):
    results, wanted = undisturbed
    for at in (1, 2, 3, 4, "losses_on_unseen_batch", "sample_difference", "write_evaluation"):
        workdir = tmp_path / f"killed-{at}"
        interrupted(toy, workdir, monkeypatch, at)
        assert climb(toy, workdir) == results, at
        assert [weights(workdir, result.name) for result in results] == wanted, at


def test_a_rung_that_ends_further_away_than_it_began_ends_the_ladder(tmp_path, toy):
    optimizer = OptimizerConfig(learning_rate=5.0, warmup_steps=0, schedule="linear")
    run = dataclasses.replace(toy, guided=dataclasses.replace(toy.guided, optimizer=optimizer))
    for _ in range(2):  # It stays so when it is started again,
        with pytest.raises(ValueError, match=r"^guided: diverged: its error is .* lower the"):
            climb(run, tmp_path / "work")
        assert not (tmp_path / "work" / "steps_0002").exists()
    # unless that much is allowed.
    allowed = dataclasses.replace(run.distillation, max_error=1e9)
    names = [
        r.name for r in climb(dataclasses.replace(run, distillation=allowed), tmp_path / "work")
    ]
    assert names == ["guided", "steps_0002"]


def test_a_last_rung_that_diverged_is_no_student(tmp_path, toy):
    optimizer = OptimizerConfig(learning_rate=50.0, warmup_steps=0, schedule="linear")
    run = dataclasses.replace(toy, halving=dataclasses.replace(toy.halving, optimizer=optimizer))
    with pytest.raises(ValueError, match=r"^steps_0002: diverged: its error is"):
        climb(run, tmp_path)
    with pytest.raises(ValueError, match="steps_0002 diverged: its error is"):
        load_stage_weights(tmp_path)
    allowed = dataclasses.replace(run.distillation, max_error=1e9)
    climb(dataclasses.replace(run, distillation=allowed), tmp_path)
    load_stage_weights(tmp_path)


def test_another_teacher_or_other_data_do_not_go_on_with_a_ladder(tmp_path, toy, undisturbed):
    data = dataclasses.replace(toy.data, image_share=0.25)
    moved = tmp_path / "moved.safetensors"
    shutil.copy(toy.teacher, moved)
    for run, field in (
        (dataclasses.replace(toy, data=data), r"data\.image_share"),
        (dataclasses.replace(toy, teacher=str(moved)), "teacher"),
    ):
        with pytest.raises(ValueError, match=rf"guided: was begun with another {field} "):
            climb(run, tmp_path / "undisturbed")
    faster = dataclasses.replace(toy.data, num_threads=toy.data.num_threads + 1)
    unet = dataclasses.replace(toy.stage.unet, unrolled_levels=toy.stage.unet.unrolled_levels + 1)
    otherwise = dataclasses.replace(
        toy.guided, compiler_options=("xla_dump_hlo_as_text=True",), microbatches=2, log_every=3
    )
    run = dataclasses.replace(
        toy, data=faster, guided=otherwise, stage=dataclasses.replace(toy.stage, unet=unet)
    )
    climb(run, tmp_path / "undisturbed")


def test_a_rung_without_a_finite_gradient_ends_the_ladder(tmp_path, toy, monkeypatch):
    def not_finite(*args, **kwargs):
        loss, aux = distillation_module.distillation_loss(*args, **kwargs)
        return loss * jnp.nan, aux

    monkeypatch.setattr(ladder_module, "distillation_loss", not_finite)
    with pytest.raises(ValueError, match=r"^guided: diverged: no step had a finite gradient"):
        climb(toy, tmp_path / "at_the_end")
    guided = dataclasses.replace(toy.guided, max_skipped=1, log_every=1)
    with pytest.raises(ValueError, match=r"^guided: diverged: step 1: 1 steps in a row without"):
        climb(dataclasses.replace(toy, guided=guided), tmp_path / "at_once")


def test_a_student_whose_teacher_is_gone_is_not_kept(tmp_path, toy, undisturbed):
    shutil.rmtree(tmp_path / "undisturbed" / "guided")
    with pytest.raises(ValueError, match=r"steps_0002: learned from .*guided, which is gone"):
        climb(toy, tmp_path / "undisturbed")


def test_teachers_that_do_not_fit_are_refused(tmp_path, toy):
    def other(**fields):
        return dataclasses.replace(toy, stage=dataclasses.replace(toy.stage, **fields))

    for run, message in (
        (dataclasses.replace(toy, teacher=str(tmp_path / "no.safetensors")), "no such weights"),
        (dataclasses.replace(toy, teacher=str(tmp_path / "none")), "no checkpoint there"),
        (
            other(prediction="eps"),
            r"base\.safetensors: stage\.prediction is v, in",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            climb(run, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_how_the_teacher_was_computed_is_not_asked(tmp_path, toy):
    unet = toy.stage.unet
    unrolled = dataclasses.replace(unet, unrolled_levels=unet.unrolled_levels + 1)
    stage = dataclasses.replace(toy.stage, unet=unrolled)
    assert climb(dataclasses.replace(toy, stage=stage), tmp_path / "work")


def test_a_student_is_no_first_teacher_and_a_damaged_ladder_is_named(tmp_path, toy, undisturbed):
    ladder_folder = tmp_path / "undisturbed"
    with pytest.raises(ValueError, match=r"stage\.distilled_steps is 2, in this config it is None"):
        climb(dataclasses.replace(toy, teacher=str(ladder_folder)), tmp_path / "work")
    for name, text, message in (
        ("ladder.json", "{}", r"ladder\.json: is damaged: it lacks rungs"),
        ("ladder.json", '{"rungs": []}', r"ladder\.json: is damaged: it names no rung"),
        ("steps_0002/evaluation.json", '{"error": 1.0}', "is damaged: it lacks error_before"),
        ("steps_0002/evaluation.json", "[1", r"evaluation\.json: is damaged: Expecting"),
        ("steps_0002/evaluation.json", '{"error": "", "error_before": 1}', "damaged: error is ''"),
    ):
        file = ladder_folder / name
        whole = file.read_text()
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_stage_weights(ladder_folder)
        file.write_text(whole)
    (ladder_folder / "guided" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: is damaged: it is no JSON object"):
        climb(toy, ladder_folder)


@pytest.mark.slow
def test_real_networks_climb_and_a_killed_ladder_has_the_same_bits(tmp_path, monkeypatch):
    run = run_of(teacher=write_teacher(tmp_path))
    results = climb(run, tmp_path / "undisturbed")
    for result in results:
        assert 0 < result.error < result.error_before
    with monkeypatch.context() as patched:
        patched.setattr(ladder_module, "make_batches", Killed)
        Killed.left = 3
        with pytest.raises(SystemExit) as ended:
            climb(run, tmp_path / "killed")
    assert ended.value.code == 143
    assert climb(run, tmp_path / "killed") == results
    for result in results:
        assert weights(tmp_path / "killed", result.name) == weights(
            tmp_path / "undisturbed", result.name
        )


def test_a_new_weight_input_starts_as_no_input():
    run = run_of(guidance=GuidanceRange(low=1.0, high=3.0))
    rung, teacher_params = ladder(run)[0], drawn_params(STAGE)
    params = student_start(rung, teacher_params)
    rng = np.random.default_rng(0)
    z_t = jnp.asarray(rng.normal(size=(2, 4, 4, 8, 3)), jnp.float32)
    cond = Conditioning(text_emb=jnp.ones((2, 3, 128)), text_mask=jnp.ones((2, 3), bool))
    level = jnp.asarray([0.0, 1.0])
    before = jax.jit(denoise_fn(STAGE, teacher_params))(z_t, level, cond)
    cond = dataclasses.replace(cond, guidance_weight=jnp.asarray([1.0, 3.0]))
    after = jax.jit(denoise_fn(rung.stage, params))(z_t, level, cond)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.abs(before).max() > 0.1


def test_the_rungs_of_the_stochastic_sampler():
    rungs = ladder(run_of(start_steps=16, sampler="stochastic"))
    assert [rung.name for rung in rungs] == [
        *("guided", "steps_0016", "steps_0008", "steps_0004", "steps_0002"),
    ]
    guided, *halvings = rungs
    assert guided.stage.distilled_steps is None and guided.objective.grid_steps is None
    assert guided.compared[1].guidance == CONSTANT
    for number, (rung, before) in enumerate(zip(halvings, rungs)):
        assert rung.teacher == before.stage and rung.train.seed == number + 1
        assert rung.stage.sampling.stepper == StochasticDistilled()
        assert rung.stage.sampling.num_steps == rung.stage.distilled_steps
        assert not any(rung.stage.sampling.guidance.weights(4))
        # Steps of 2 / N, each two of the teacher's.
        ours, teachers = rung.compared
        assert (ours.num_steps, teachers.num_steps) == (
            rung.stage.distilled_steps // 2,
            rung.stage.distilled_steps,
        )
        assert ours.stepper == teachers.stepper == DDIM()
    assert halvings[0].compared[1].num_steps == guided.compared[0].num_steps == 16


def test_rungs_of_other_kinds():
    # Nothing to fold in: the first teacher is the stage itself, unguided.
    run = run_of(SSR1, guidance=ConstantGuidance(weight=0.0), start_steps=8)
    first, second = ladder(run)
    assert (first.name, second.name) == ("steps_0004", "steps_0002")
    assert first.teacher == SSR1 and not any(first.compared[1].guidance.weights(8))
    assert first.stage.sampling.augmentation == SSR1.sampling.augmentation

    oscillating = run_of(guidance=OscillatingGuidance(), thresholding=DynamicThreshold())
    guided = ladder(oscillating)[0]
    assert guided.objective.grid_steps == guided.stage.distilled_steps == 4
    assert guided.compared[1].thresholding == DynamicThreshold()
    assert guided.stage.sampling.thresholding == StaticClip()
    assert guided.stage.oscillating is None

    ranged = ladder(run_of(TSR1, guidance=GuidanceRange(low=0.0, high=5.0)))
    assert not ranged[0].teacher.unet.guidance_weight
    for rung in ranged:
        assert rung.stage.unet.guidance_weight
        assert rung.stage.sampling.guidance == TSR1.sampling.guidance
        assert rung.objective.guidance == GuidanceRange(low=0.0, high=5.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"final_steps": 3}, "final_steps: halving 4 steps never gives 3"),
        ({"eval_clips": 0}, "eval_clips: 0 must be positive"),
        ({"max_error": 0.0}, "max_error: 0.0 must be positive"),
        (
            {"guidance": ConstantGuidance(weight=0.0), "final_steps": 4},
            "neither guidance nor steps to distil",
        ),
        ({"loss": "r_mse"}, "'r_mse' needs stage.low_res_error"),
        ({"train": {"init_from": "x"}}, "guided.init_from: must be None"),
        (
            {"stage": dataclasses.replace(STAGE, distilled_steps=4)},
            "a student cannot be the first teacher",
        ),
    ],
)
def test_impossible_ladders_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        run_of(**fields)
