"""The training step of a distillation, for devices that need not exist."""

import dataclasses
import functools
from typing import Any

import jax

from imagen_video.array_types import KeyArray
from imagen_video.cascade.stage import init_stage_params, stage_param_axes
from imagen_video.profiling.flops import count_flops
from imagen_video.profiling.programs import DeviceProgram, training_batch, undivided_batch
from imagen_video.sharding.layout import Layout
from imagen_video.training.distillation import GuidedObjective, distillation_loss
from imagen_video.training.objectives import denoising_loss
from imagen_video.training.optimizer import make_optimizer
from imagen_video.training.placement import state_shardings
from imagen_video.training.rungs import DistillRun, Rung, ladder, stage_run
from imagen_video.training.state import abstract_state
from imagen_video.training.step import make_train_step

# "guide" is stage one, "halve" any rung of stage two: they differ in the grid of times alone.
RUNG_PROGRAMS = ("guide", "halve")


def rung_program(run: DistillRun, kind: str, layout: Layout) -> tuple[DeviceProgram, int]:
    """Returns one training step of a rung, on cached caption embeddings, and its global batch size.

    Its model FLOPs are those of the loss, the teacher's two evaluations included, and twice those
    of the student's evaluation for its gradient.

    Args:
      run: the ladder.
      kind: one of `RUNG_PROGRAMS`.
      layout: of the devices.

    Raises:
      ValueError: the ladder has no such rung, or its batch cannot be spread over the devices.
    """
    rungs = {_kind(rung): rung for rung in ladder(run)}
    if kind not in rungs:
        raise ValueError(f"program: this ladder has no rung for {kind!r}")
    rung = rungs[kind]
    as_stage, config = stage_run(run, rung), rung.train
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    init_fn = functools.partial(init_stage_params, rung.stage)
    state = abstract_state(init_fn, optimizer)
    batch = training_batch(as_stage, row_shards=layout.batch_shards)
    teacher = jax.eval_shape(lambda: init_stage_params(rung.teacher, jax.random.key(0)))

    def loss_fn(
        params: Any, batch: Any, key: KeyArray, teacher: Any, layout: Layout | None = layout
    ):
        return distillation_loss(
            rung.objective,
            params,
            teacher,
            None,
            batch,
            key,
            student=rung.stage,
            teacher=rung.teacher,
            layout=layout,
        )

    # An input for w, if a network has one, costs next to nothing.
    evaluated = dataclasses.replace(
        rung.teacher, unet=dataclasses.replace(rung.teacher.unet, guidance_weight=False)
    )
    evaluated_params = jax.eval_shape(lambda: init_stage_params(evaluated, jax.random.key(0)))

    def forward_loss(params: Any, batch: Any, key: KeyArray):
        return denoising_loss(evaluated, as_stage.objective, params, None, batch, key)

    undivided = undivided_batch(as_stage)
    count = functools.partial(count_flops, padded_taps=False)
    whole = functools.partial(loss_fn, layout=None)
    key = jax.random.key(0)
    flops = count(whole, state.params, undivided, key, teacher)
    flops += 2 * count(forward_loss, evaluated_params, undivided, key)

    shardings = layout.params(stage_param_axes(rung.teacher), teacher)
    step = make_train_step(
        loss_fn,
        optimizer,
        ema_decay=config.ema_decay,
        run_seed=config.seed,
        microbatches=config.microbatches,
        compiler_options=config.compiler_options,
        state_shardings=state_shardings(layout, stage_param_axes(rung.stage), state),
        batch_sharding=layout.batch(microbatches=config.microbatches),
        frozen_shardings=[shardings],
    )
    program = DeviceProgram(
        lower=lambda: step.lower(state, batch, teacher),
        model_flops=flops,
    )
    return program, config.batch_size


def _kind(rung: Rung) -> str:
    return "guide" if isinstance(rung.objective, GuidedObjective) else "halve"
