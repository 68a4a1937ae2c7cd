"""What distillation minimises: a student's distance from its frozen teacher, on a stage's batches.

Oscillating guidance, whose weight is a function of the sampling step, can be folded into a network
in two ways; the paper (arXiv 2210.02303, section 2.7) does not say how it was done.

A. Stage one on the teacher's grid: t is one of its N sampling times, so t itself tells the weight,
   and the student needs no other input. Stage two follows as for constant guidance.
B. Stage one with the weight as an input, drawn from a range that holds both values; in the first
   halving the teacher takes the weights of its two steps, and the student drops the input.

Students that fit exactly have the same targets under both. A is the default, because it asks of the
network what it will be used for, w = 1 and w = 15 at N known times, and nothing else; B spends the
network on all weights at all times. B pays where one network shall serve many weights, which
`GuidanceRange` gives for constant ones.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagen_video.array_types import KeyArray, LogSNR, Video
from imagen_video.cascade.stage import Stage, denoise_fn
from imagen_video.diffusion.distillation import StudentGrid, guided_target, progressive_target
from imagen_video.diffusion.guidance import (
    ConstantGuidance,
    GuidanceRange,
    OscillatingGuidance,
    both_branches,
    predict_both,
)
from imagen_video.diffusion.parameterization import predict_x, prediction_of_x
from imagen_video.diffusion.thresholding import DynamicThreshold, NoThreshold, StaticClip
from imagen_video.sampling import keys as row_keys
from imagen_video.sharding.layout import Layout
from imagen_video.training.objectives import (
    Batch,
    Encode,
    Inputs,
    StageLoss,
    draw_inputs,
    embed_captions,
    fold_rows,
    prediction_loss,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedObjective:
    """Stage one: the student predicts (1 + w) conditional - w unconditional in one evaluation.

    Attributes:
      guidance: w; a `GuidanceRange` is drawn from, row by row, and fed to the student.
      thresholding: of the target, as `guided_target` says.
      loss: which error counts. "snr_trunc" is our choice, because few-step students start at t = 1,
        where the "eps_mse" of the authors' code (arXiv 2210.03142) has weight 2e-9.
      max_augmentation: as in `DenoisingConfig`.
      grid_steps: N, if t is one of 1 / N, ..., 1; oscillating guidance needs it. None for any t.
    """

    guidance: ConstantGuidance | OscillatingGuidance | GuidanceRange
    thresholding: NoThreshold | StaticClip | DynamicThreshold = NoThreshold()
    loss: StageLoss = "snr_trunc"
    max_augmentation: float = 1.0
    grid_steps: int | None = None

    def __post_init__(self):
        if isinstance(self.guidance, OscillatingGuidance) and self.grid_steps is None:
            raise ValueError(
                "grid_steps: None, but the weights of oscillating guidance need a grid"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressiveObjective:
    """Stage two: one step of the student lands where two of the teacher's do.

    Attributes:
      grid: the student's steps.
      loss: which error counts; "snr_trunc" and "v_mse" are those of arXiv 2202.00512, section 4.
      max_augmentation: as in `DenoisingConfig`.
      guidance: of networks that read w, drawn row by row and fed to both; None for others.
    """

    grid: StudentGrid
    loss: StageLoss = "snr_trunc"
    max_augmentation: float = 1.0
    guidance: GuidanceRange | None = None


Objective = GuidedObjective | ProgressiveObjective


def distillation_loss(
    objective: Objective,
    params: Any,
    teacher_params: Any,
    encode: Encode | None,
    batch: Batch,
    key: KeyArray,
    *,
    student: Stage,
    teacher: Stage,
    layout: Layout | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss of a batch, and metrics by name; no caption is dropped.

    What a row draws is what it draws in `denoising_loss`.

    Args:
      objective: stage one or stage two.
      params: of the student.
      teacher_params: frozen.
      encode: as in `denoising_loss`.
      batch: as in `denoising_loss`.
      key: of this training step.
      student: whose network learns.
      teacher: whose network is imitated; it may lack the student's input for w in stage one.
      layout: how clips are spread over devices.
    """
    text_emb, text_mask = embed_captions(batch, encode=encode, dropout=0.0, key=key)
    is_guided = isinstance(objective, GuidedObjective)
    inputs = draw_inputs(
        student,
        batch,
        key,
        text_emb=text_emb,
        text_mask=text_mask,
        max_augmentation=objective.max_augmentation,
        grid_steps=objective.grid_steps if is_guided else objective.grid.num_steps,
        layout=layout,
    )
    weight = None
    if objective.guidance is not None:
        weight = _weights(objective, inputs, fold_rows(key, batch["row"]))
    if isinstance(objective.guidance, GuidanceRange):
        cond = dataclasses.replace(inputs.cond, guidance_weight=weight)
        inputs = dataclasses.replace(inputs, cond=cond)

    imitated = denoise_fn(_looped(teacher), teacher_params, layout=layout)
    given = {"z_t": inputs.z_t, "logsnr_t": inputs.logsnr_t}
    if is_guided:
        conditional, unconditional = predict_both(imitated, **given, branches=_branches(inputs))
        target = guided_target(
            conditional=conditional,
            unconditional=unconditional,
            weight=weight,
            thresholding=objective.thresholding,
            is_image=inputs.cond.is_image,
            parameterization=teacher.prediction,
            **given,
        )
    else:

        def teacher_x(z: Video, logsnr: LogSNR) -> Video:
            prediction = imitated(z, logsnr, inputs.cond).astype(jnp.float32)
            return predict_x(
                prediction, z_t=z, logsnr_t=logsnr, parameterization=teacher.prediction
            )

        x = progressive_target(
            teacher_x,
            z_t=inputs.z_t,
            i=inputs.step,
            grid=objective.grid,
            schedule=student.schedule,
        )
        target = prediction_of_x(x, **given, parameterization=student.prediction)
    prediction = denoise_fn(student, params, layout=layout)(**given, cond=inputs.cond)
    target = jax.lax.stop_gradient(target)
    return prediction_loss(student, prediction, target, inputs=inputs, loss=objective.loss), {}


def _looped(teacher: Stage) -> Stage:
    """The same network without unrolled levels: sooner compiled, and no gradient is taken of it."""
    return dataclasses.replace(teacher, unet=dataclasses.replace(teacher.unet, unrolled_levels=0))


def _branches(inputs: Inputs) -> Any:
    """Both branches of a teacher that reads no w."""
    return both_branches(dataclasses.replace(inputs.cond, guidance_weight=None))


def _weights(
    objective: Objective, inputs: Inputs, keys: KeyArray
) -> Float[Array, " b"] | Float[Array, "b f"]:
    """The weight of every row, or of every frame where the log-SNR is per frame."""
    guidance = objective.guidance
    if isinstance(guidance, GuidanceRange):
        keys = row_keys.fold_in_name(keys, "guidance_weight")
        low, high = guidance.low, guidance.high
        return jax.vmap(lambda k: jax.random.uniform(k, (), minval=low, maxval=high))(keys)
    if isinstance(guidance, ConstantGuidance):
        return jnp.full_like(inputs.logsnr_t, guidance.weight)
    # The weights are listed from the noisiest step, i = N - 1, on.
    noisiest_first = jnp.asarray(guidance.weights(objective.grid_steps), jnp.float32)
    return noisiest_first[objective.grid_steps - 1 - inputs.step]
