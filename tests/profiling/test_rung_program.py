"""The training step of a distillation, as devices that need not exist would run it."""

import dataclasses

import jax
import pytest
from micro_cascade import BASE, stage_run

from imagen_video.cli.main import main
from imagen_video.diffusion.guidance import ConstantGuidance, GuidanceRange
from imagen_video.profiling.programs import training_program
from imagen_video.profiling.rung_program import rung_program
from imagen_video.sharding.layout import ShardingConfig, make_layout
from imagen_video.training.optimizer import OptimizerConfig
from imagen_video.training.rungs import Distillation, DistillRun


def run_of(weight=2.0, *, guidance=None):
    trained = stage_run(BASE, optimizer=OptimizerConfig(warmup_steps=0))
    guidance = guidance or ConstantGuidance(weight=weight)
    return DistillRun(
        stage=BASE,
        teacher=None,
        distillation=Distillation(guidance=guidance, start_steps=4, final_steps=2),
        data=trained.data,
        text=trained.text,
        guided=trained.train,
        halving=dataclasses.replace(trained.train, batch_size=4, microbatches=2),
    )


@pytest.mark.parametrize(
    "guidance",
    [ConstantGuidance(weight=2.0), pytest.param(GuidanceRange(), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_step_is_five_evaluations_two_of_them_the_teachers(guidance):
    run, layout = run_of(guidance=guidance), make_layout(ShardingConfig())
    training = training_program(stage_run(BASE), layout)
    for kind, batch_size in (("guide", 2), ("halve", 4)):
        program, rows = rung_program(run, kind, layout)
        assert rows == batch_size
        # Training is three: forward, and twice as much backward.
        per_row = program.model_flops / batch_size
        assert per_row == pytest.approx(5 / 3 * training.model_flops / 2, rel=0.05)


def test_the_model_asks_for_the_same_however_its_batch_is_divided():
    # One row of eight packs images: in eight parts each has slots for as many captions as that one.
    layout, counted = make_layout(ShardingConfig()), set()
    data = dataclasses.replace(stage_run(BASE).data, image_share=0.125)
    for parts in (1, 8):
        cut = dict(batch_size=8, microbatches=parts)
        training = dataclasses.replace(stage_run(BASE, **cut), data=data)
        rungs = dataclasses.replace(run_of(), data=data)
        rungs = dataclasses.replace(rungs, halving=dataclasses.replace(rungs.halving, **cut))
        programs = training_program(training, layout), rung_program(rungs, "halve", layout)[0]
        counted.add(tuple(program.model_flops for program in programs))
    assert len(counted) == 1


def test_the_teacher_is_an_argument_of_the_program():
    program, _ = rung_program(run_of(2.0), "halve", make_layout(ShardingConfig()))
    (_, _, teacher), _ = program.lower().in_avals
    assert len(jax.tree.leaves(teacher)) > 10


def test_a_ladder_without_guidance_has_no_such_program():
    with pytest.raises(ValueError, match="no rung for 'guide'"):
        rung_program(run_of(0.0), "guide", make_layout(ShardingConfig()))


@pytest.mark.slow
def test_a_rung_is_compiled_for_a_slice(capfd):
    pytest.importorskip("libtpu")
    argv = ["compile", "--config=configs/distill.py:ssr1,tiny", "--slice=v5e:2x2", "--json"]
    assert main([*argv, "--program=halve"]) == 0, capfd.readouterr().err[-2000:]
    assert '"fits": true' in capfd.readouterr().out
