"""Targets of distillation: guidance into one network, then half as many steps with every student.

Stage one: a student matches the guided teacher in one evaluation, at any t (Meng et al., arXiv
2210.03142, section 3.1). Stage two: one step of a student with N steps lands where two steps of its
teacher do (Salimans & Ho, arXiv 2202.00512, algorithm 2). Imagen Video, arXiv 2210.02303, section
2.7, does both, one after the other.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imagen_video.array_types import LogSNR, Video
from imagen_video.diffusion.guidance import guide
from imagen_video.diffusion.parameterization import (
    Parameterization,
    expand,
    predict_x,
    prediction_of_x,
)
from imagen_video.diffusion.process import ddim_step, x_of_ddim_step
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.diffusion.thresholding import NoThreshold, Thresholding


def guided_target(
    *,
    conditional: Float[Array, "b f h w c"],
    unconditional: Float[Array, "b f h w c"],
    weight: float | Float[Array, " b"] | Float[Array, "b f"],
    z_t: Video,
    logsnr_t: LogSNR,
    thresholding: Thresholding,
    is_image: Bool[Array, " b"] | None = None,
    parameterization: Parameterization = "v",
) -> Float[Array, "b f h w c"]:
    """Returns what the student of stage one should predict: (1 + w) conditional - w unconditional.

    Args:
      conditional: the teacher's prediction with the caption.
      unconditional: its prediction without.
      weight: w of Eq. 5: one for all, [b] or [b f].
      z_t: what both saw.
      logsnr_t: [b] or [b f], nats.
      thresholding: applied to the guided x, as sampling does; `NoThreshold` leaves the target
        linear. The authors' code clips it in some runs (`train_clip_x`).
      is_image: rows of packed images, which are thresholded one by one.
      parameterization: what the networks predict.
    """
    guided = guide(
        conditional=conditional,
        unconditional=unconditional,
        weight=expand(weight, z_t),
    )
    if isinstance(thresholding, NoThreshold):
        return guided
    given = {"z_t": z_t, "logsnr_t": logsnr_t, "parameterization": parameterization}
    x = predict_x(guided, **given)
    bounded = thresholding(x, is_image)
    # The difference alone is divided by sigma_t: where nothing is clipped the target is exact.
    zero = jnp.zeros_like(x)
    moved = prediction_of_x(bounded - x, **given | {"z_t": zero})
    return guided + moved


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentGrid:
    """The times at which a student of N steps is used, and how far each of its steps leads.

    Step i leads from t = (i + 1) / N to s = max(i + 1 - jump, 0) / N, by way of the time m at which
    its teacher is evaluated once more. i may be an array; it counts down to 0, the last step.

    Attributes:
      num_steps: N.
      jump: 1 for a student sampled by DDIM, 2 for one sampled by the N-step stochastic sampler,
        whose DDIM steps have twice the length (arXiv 2210.03142, section 3.3). The teacher's steps
        are 1 / 2N and 1 / N long.
    """

    num_steps: int
    jump: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.num_steps < self.jump:
            raise ValueError(f"num_steps: {self.num_steps} is below jump, {self.jump}")

    def t(self, i: int | Int[Array, "..."]) -> Float[Array, "..."]:
        """Returns the time at which step i begins, in (0, 1]."""
        return jnp.asarray((i + 1) / self.num_steps)

    def m(self, i: int | Int[Array, "..."]) -> Float[Array, "..."]:
        """Returns the time halfway through step i, in [0, 1)."""
        return jnp.asarray((i + 1 - self.jump / 2) / self.num_steps)

    def s(self, i: int | Int[Array, "..."]) -> Float[Array, "..."]:
        """Returns the time at which step i ends, in [0, 1)."""
        return jnp.maximum(jnp.asarray((i + 1 - self.jump) / self.num_steps), 0)


def student_steps(*, start_steps: int, final_steps: int, jump: Literal[1, 2]) -> tuple[int, ...]:
    """Returns N of every student, each half of the one before.

    The first for the stochastic sampler has as many steps as the DDIM sampler of its teacher: its
    steps of 2 / N are two of the teacher's. The first for DDIM has half as many.

    Args:
      start_steps: of the first teacher's DDIM sampler.
      final_steps: of the last student; equal to start_steps, it leaves DDIM nothing to halve.
      jump: as in `StudentGrid`.

    Raises:
      ValueError: halving never gives final_steps, or they are fewer than `jump`.
    """
    if final_steps < jump:
        raise ValueError(f"final_steps: {final_steps} is below {jump}, the least for this sampler")
    steps = [start_steps]
    while steps[-1] > final_steps and steps[-1] % 2 == 0:
        steps.append(steps[-1] // 2)
    if steps[-1] != final_steps:
        raise ValueError(f"final_steps: halving {start_steps} steps never gives {final_steps}")
    return tuple(steps if jump == 2 else steps[1:])


def progressive_target(
    teacher_x: Callable[[Video, LogSNR], Video],
    *,
    z_t: Video,
    i: Int[Array, " b"] | Int[Array, "b f"],
    grid: StudentGrid,
    schedule: CosineSchedule,
) -> Video:
    """Returns the x with which one DDIM step of the student lands where the teacher's two do.

    The last step, i = 0, returns x itself, so its target is the x that the teacher ends with: of
    its second evaluation at jump 1; of its only one at jump 2, where t = 1 / N is the length of one
    of the teacher's steps. The teacher is not clipped (as in the authors' code).

    Args:
      teacher_x: (z, log-SNR) to x_hat.
      z_t: at the grid's t(i).
      i: step of each row, or of each frame, in [0, N).
      grid: of the student.
      schedule: time to log-SNR.
    """
    logsnr_t, logsnr_m, logsnr_s = (schedule(time) for time in (grid.t(i), grid.m(i), grid.s(i)))

    def step(z: Video, ends: tuple[LogSNR, LogSNR]) -> tuple[Video, Video]:
        x = teacher_x(z, ends[0])
        return ddim_step(z_t=z, x=x, logsnr_s=ends[1], logsnr_t=ends[0]), x

    # A loop, so that the teacher's network is compiled once.
    ends = jnp.stack([logsnr_t, logsnr_m]), jnp.stack([logsnr_m, logsnr_s])
    z_s, (x_t, x_m) = jax.lax.scan(step, z_t, ends)
    x = x_of_ddim_step(z_s=z_s, z_t=z_t, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    is_last = expand(grid.t(i), z_t) < 1.5 / grid.num_steps
    return jnp.where(is_last, x_m if grid.jump == 1 else x_t, x)
