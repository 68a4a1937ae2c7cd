"""The sampling loop: from standard normal noise to a clip, one prediction of x per step.

It knows neither networks nor guidance: what it calls is `predict_x`. A step is a pure function of
(state, step number, the sample's keys), so the loop is one program, or pieces of it driven from
the host, and stops and resumes between any two steps.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from imagen_video.array_types import LogSNR, Video
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sampling.steppers import Stepper


@runtime_checkable
class PredictX(Protocol):
    """The denoiser as a sampler sees it, for example what `guidance.guided` returns."""

    def __call__(self, z_t: Video, logsnr_t: LogSNR, step: Int[Array, ""]) -> Video:
        """Predicts x_hat from z_t at logsnr_t [b]; `step` counts the steps done, 0 at t = 1."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerState:
    """Where a sampler is: all that must be saved to go on from here.

    A pytree, so its leaves may also be numpy copies, shapes or shardings of these arrays.

    Attributes:
      z: Float[b f h w c], z_t at t = 1 - step / num_steps; the finished clip once all are done.
      step: Int[], the number of steps done.
    """

    z: Any
    step: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A stepper, repeated num_steps times on a schedule.

    In all methods `keys` is Key[b], folded with the stage's name already: the noise of row b
    depends on keys[b] and the step number alone.

    Attributes:
      stepper: what one step does.
      num_steps: N, the number of evaluations of predict_x.
      schedule: time to log-SNR.
    """

    stepper: Stepper
    num_steps: int
    schedule: CosineSchedule

    def __post_init__(self) -> None:
        if self.num_steps < self.stepper.min_steps:
            name = type(self.stepper).__name__
            raise ValueError(
                f"num_steps: {self.num_steps} must be at least {self.stepper.min_steps} for {name}"
            )

    def init(self, keys: Key[Array, " b"], *, shape: tuple[int, int, int, int]) -> SamplerState:
        """Returns the state at t = 1: standard normal noise.

        Args:
          keys: one per sample.
          shape: (f, h, w, c) of one sample.
        """
        noise = sampling_keys.normal(sampling_keys.fold_in_name(keys, "init"), shape)
        return SamplerState(z=noise, step=jnp.int32(0))

    def step(
        self, state: SamplerState, *, predict_x: PredictX, keys: Key[Array, " b"]
    ) -> SamplerState:
        """Returns the state one step cleaner. Pure; `state.step` may be traced."""
        i = self.num_steps - 1 - state.step
        logsnr_t = self.schedule((i + 1) / self.num_steps)
        x_hat = predict_x(state.z, jnp.broadcast_to(logsnr_t, keys.shape), state.step)
        step_keys = sampling_keys.fold_in_step(keys, state.step)
        z = self.stepper.step(
            state.z,
            x_hat,
            i=i,
            num_steps=self.num_steps,
            schedule=self.schedule,
            noise=sampling_keys.normal(step_keys, state.z.shape[1:]),
        )
        return SamplerState(z=z, step=state.step + 1)

    def run(
        self,
        state: SamplerState,
        *,
        steps: int | Int[Array, ""],
        predict_x: PredictX,
        keys: Key[Array, " b"],
    ) -> SamplerState:
        """Returns the state after `steps` more steps; intermediate ones are not kept.

        Args:
          state: where to start; its `step` may be traced.
          steps: a Python int makes a `lax.scan`; a traced one a while loop, a single program for
            pieces of every length, so that resuming anywhere repeats the same arithmetic.
          predict_x: the denoiser.
          keys: one per sample.
        """
        return jax.lax.fori_loop(
            0, steps, lambda _, state: self.step(state, predict_x=predict_x, keys=keys), state
        )

    def sample(
        self,
        keys: Key[Array, " b"],
        *,
        shape: tuple[int, int, int, int],
        predict_x: PredictX,
    ) -> Video:
        """Returns clips [b f h w c], float32, from noise to end as one `lax.scan`."""
        state = self.init(keys, shape=shape)
        return self.run(state, steps=self.num_steps, predict_x=predict_x, keys=keys).z

    def drive(
        self,
        state: SamplerState,
        *,
        run: Callable[[SamplerState, Int[Array, ""]], SamplerState],
        steps_per_call: int,
    ) -> Iterator[SamplerState]:
        """Yields the state after each piece of the loop until all steps are done, from the host.

        Args:
          state: a fresh state or a restored one.
          run: a compiled `(state, steps) -> state` made from `Sampler.run`, its network and
            conditioning bound or passed as arrays, `steps` traced; it may donate the state.
          steps_per_call: the length of a piece; the last may be shorter.

        Raises:
          ValueError: steps_per_call is less than 1.
        """
        if steps_per_call < 1:
            raise ValueError(f"steps_per_call: {steps_per_call} must be at least 1")
        done = int(state.step)
        while done < self.num_steps:
            steps = min(steps_per_call, self.num_steps - done)
            state = run(state, jnp.int32(steps))
            done += steps
            yield state
