"""Climbs a ladder of students: trains each rung, measures it against its teacher, goes on."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from flax import traverse_util

from imagen_video import records
from imagen_video.array_types import KeyArray
from imagen_video.cascade.same_network import NETWORK_FIELDS, check_same_network
from imagen_video.cascade.stage import Stage, init_stage_params, stage_param_axes
from imagen_video.cascade.weights import load_stage
from imagen_video.sharding.layout import Layout, layout_if_needed
from imagen_video.sharding.processes import from_first, held_by_first, placed
from imagen_video.training import ladder_files
from imagen_video.training.distillation import distillation_loss
from imagen_video.training.export import restore_stage
from imagen_video.training.loop import train
from imagen_video.training.placement import placement
from imagen_video.training.run_text import RunText, encode_fn, frozen_params
from imagen_video.training.rung_evaluation import losses_on_unseen_batch, sample_difference
from imagen_video.training.rungs import DistillRun, Rung, ladder, stage_run
from imagen_video.training.stage_run import check_text, make_batches

# Of a stage, what its weights depend on.
TRAINED_FIELDS = (*NETWORK_FIELDS, "output", "schedule", "distilled_steps", "distilled_guidance")
ADVICE = "lower the learning rate of its optimizer and use another work directory"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RungResult:
    """How close a student came to its teacher.

    Attributes:
      name: of the rung.
      error_before: loss of the untrained student, which is its teacher, on an unseen batch.
      error: of the trained one, on the same batch with the same noise.
      sample_difference: root mean square, of clips in [-1, 1]; see `sample_difference`. None, as
        the errors are, if it is not finite.
      skipped: training steps without a finite gradient.
    """

    name: str
    error_before: float | None
    error: float | None
    sample_difference: float | None
    skipped: int


def distill(run: DistillRun, *, text: RunText, workdir: str) -> Iterator[RungResult]:
    """Climbs the ladder in `workdir` on all devices, and yields what became of each rung.

    Killed at any moment and started again, it goes on where it was: finished rungs stay, the one in
    progress ends with the bits of an undisturbed run. Every rung reads its teacher from disk.

    Raises:
      ValueError: a rung diverged; the teacher's weights are missing or of another stage or text
        model; a rung's batches cannot be made; `workdir` holds a ladder of another configuration,
        data or first teacher, or a rung whose teacher is gone, or another run is at work in it.
    """
    if run.teacher is None:
        raise ValueError("config.teacher: name the weights file or work directory to distil from")
    check_text(run.stage, text)
    layout = layout_if_needed(run.sharding)
    root, rungs = epath.Path(workdir), ladder(run)
    for rung in rungs:
        ladder_files.check_same_rung(root / rung.name, rung, run, is_first=rung is rungs[0])
        _check_batches(run, rung, text, layout)
    ladder_files.check_teachers(root, [rung.name for rung in rungs])
    before = None
    # The whole ladder is held, not a rung: between two, a second run would take the next one.
    with contextlib.ExitStack() as alone:
        for rung in rungs:
            folder = root / rung.name
            found = ladder_files.read_evaluation(folder)
            if found is None:
                where = run.teacher if before is None else str(root / before.name)
                teacher_params = _restore(where, rung.teacher, text=text, layout=layout)
            if before is None:  # nothing is made for a teacher that does not fit
                alone.enter_context(held_by_first(workdir))
                from_first(
                    lambda: ladder_files.write_ladder(
                        root,
                        [rung.name for rung in rungs],
                        max_error=run.distillation.max_error,
                    )
                )
            if found is None:
                result = _climb(run, rung, teacher_params, text=text, folder=folder, layout=layout)
            else:
                result = records.from_dict(RungResult, found, where=f"{folder}: evaluation")
            yield result
            _check_converged(result, run.distillation.max_error)
            before = rung


def _climb(
    run: DistillRun,
    rung: Rung,
    teacher_params: Any,
    *,
    text: RunText,
    folder: epath.Path,
    layout: Layout | None,
) -> RungResult:
    """Trains a rung and measures it."""
    logging.info("%s: %d steps", rung.name, rung.train.num_steps)

    def loss_fn(params: Any, batch: Any, key: KeyArray, teacher_params: Any, *encoder: Any):
        return distillation_loss(
            rung.objective,
            params,
            teacher_params,
            encode_fn(text, *encoder),
            batch,
            key,
            student=rung.stage,
            teacher=rung.teacher,
            layout=layout,
        )

    start = student_start(rung, teacher_params)
    frozen = (teacher_params, *frozen_params(text, layout))
    try:
        with contextlib.closing(make_batches(stage_run(run, rung), text, layout)) as batches:
            state = train(
                init_fn=functools.partial(init_stage_params, rung.stage),
                loss_fn=loss_fn,
                batches=batches,
                config=rung.train,
                workdir=str(folder),
                run_config={
                    "run": records.to_dict(rung),
                    "ladder": records.to_dict(run),
                    "text_digest": text.digest,
                },
                start_from=start,
                frozen=frozen,
                **placement(rung.stage, rung.train, layout),
            )
        if int(state.skipped) >= rung.train.num_steps:
            raise FloatingPointError("no step had a finite gradient")
    except FloatingPointError as error:
        raise ValueError(f"{rung.name}: diverged: {error}; {ADVICE}") from error
    error_before, error = losses_on_unseen_batch(
        run,
        rung,
        loss_fn,
        params=(start, state.ema_params),
        frozen=frozen,
        text=text,
        layout=layout,
    )
    difference = sample_difference(
        run,
        rung,
        params=state.ema_params,
        teacher_params=teacher_params,
        text=text,
        layout=layout,
    )
    result = RungResult(
        name=rung.name,
        error_before=_finite(error_before),
        error=_finite(error),
        sample_difference=_finite(difference),
        skipped=int(state.skipped),
    )
    from_first(lambda: ladder_files.write_evaluation(folder, records.to_dict(result)))
    return result


def _check_batches(run: DistillRun, rung: Rung, text: RunText, layout: Layout | None) -> None:
    """Raises ValueError now, not when the rung begins, days later, if it could have no batches."""
    try:
        make_batches(stage_run(run, rung), text, layout).close()
    except ValueError as error:
        raise ValueError(f"{rung.name}: {error}") from error


def student_start(rung: Rung, teacher_params: Any) -> Any:
    """Returns the parameters that a student begins with: its teacher's.

    A student that is given w gets an embedding of it whose last layer is 0, so that it computes
    what its teacher does whatever w is.
    """
    if rung.stage.unet == rung.teacher.unet:
        return teacher_params
    key = jax.random.key(rung.train.seed, impl="threefry2x32")
    drawn = jax.jit(functools.partial(init_stage_params, rung.stage))(key)
    flat = traverse_util.flatten_dict(drawn) | traverse_util.flatten_dict(teacher_params)
    return traverse_util.unflatten_dict(flat)


def _check_converged(result: RungResult, max_error: float) -> None:
    if not ladder_files.has_converged(records.to_dict(result), max_error):
        raise ValueError(
            f"{result.name}: diverged: its error is {result.error}, {result.error_before} before"
            f" training, and distillation.max_error is {max_error}; {ADVICE}"
        )


def _restore(path: str, stage: Stage, *, text: RunText, layout: Layout | None) -> Any:
    """Reads a teacher's averaged parameters as float32, in place on the devices."""
    like = jax.eval_shape(lambda: init_stage_params(stage, jax.random.key(0)))
    shardings = None if layout is None else layout.params(stage_param_axes(stage), like)
    if path.endswith(".safetensors"):
        model = load_stage(path, param_dtype="float32")
        stored, digest = model.stage, model.text_digest
        params = model.params if shardings is None else placed(model.params, shardings)
    else:
        if shardings is not None:
            like = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                like,
                shardings,
            )
        stored, params, digest = restore_stage(path, like=like)
    if digest != text.digest:
        raise ValueError(
            f"{path}: was trained with text model {digest[:12]}, but the run reads {text.name}"
        )
    check_same_network(path, stored, stage, fields=TRAINED_FIELDS)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def _finite(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
