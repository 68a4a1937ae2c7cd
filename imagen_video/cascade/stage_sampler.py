"""Samples one stage: conditioning once, then the sampler's loop, a compiled piece at a time."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from imagen_video.array_types import Conditioning, Video
from imagen_video.cascade.stage import Sampling, Stage, denoise_fn, low_res_condition
from imagen_video.cascade.weights import StageModel
from imagen_video.diffusion.guidance import guided
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sampling.sampler import Sampler, SamplerState


def make_sampler(stage: Stage, sampling: Sampling) -> Sampler:
    """Returns the loop that `sampling` describes, on the stage's schedule."""
    return Sampler(stepper=sampling.stepper, num_steps=sampling.num_steps, schedule=stage.schedule)


@functools.partial(jax.jit, static_argnames=("stage", "sampling"))
def make_conditioning(
    stage: Stage,
    sampling: Sampling,
    *,
    text_emb: Float[Array, "b n d"],
    text_mask: Bool[Array, "b n"],
    low_res: Video | None,
    keys: Key[Array, " b"],
) -> Conditioning:
    """Returns what all steps of a stage share; the low-res clip is noised here, once.

    Args:
      stage: to be sampled.
      sampling: how; its augmentation level applies.
      text_emb: frozen embeddings of each sample's caption.
      text_mask: True at real tokens.
      low_res: the previous stage's clip on this stage's input grid; None for the base model.
      keys: of each sample, folded with the stage's name.
    """
    text_emb = jnp.where(text_mask[..., None], text_emb, 0.0)
    if low_res is None:
        return Conditioning(text_emb=text_emb, text_mask=text_mask)
    logsnr = sampling.augmentation.broadcast(len(low_res))
    eps = sampling_keys.normal(sampling_keys.fold_in_name(keys, "low_res"), low_res.shape[1:])
    return Conditioning(
        text_emb=text_emb,
        text_mask=text_mask,
        low_res=low_res_condition(
            stage,
            low_res,
            eps=eps,
            logsnr=logsnr,
            height=stage.output.height,
            width=stage.output.width,
        ),
        low_res_logsnr=logsnr,
    )


@functools.partial(jax.jit, static_argnames=("stage", "sampling"), donate_argnames=("state",))
def run_steps(
    stage: Stage,
    sampling: Sampling,
    params: Any,
    state: SamplerState,
    steps: Int[Array, ""],
    *,
    cond: Conditioning,
    keys: Key[Array, " b"],
) -> SamplerState:
    """Returns the state after `steps` more guided steps; one program whatever their number."""
    predict_x = guided(
        denoise_fn(stage, params),
        cond,
        weights=sampling.guidance.weights(sampling.num_steps),
        thresholding=sampling.thresholding,
        parameterization=stage.prediction,
    )
    sampler = make_sampler(stage, sampling)
    return sampler.run(state, steps=steps, predict_x=predict_x, keys=keys)


def sample_stage(
    model: StageModel,
    sampling: Sampling,
    *,
    text_emb: Float[Array, "b n d"],
    text_mask: Bool[Array, "b n"],
    low_res: Video | None,
    keys: Key[Array, " b"],
    state: SamplerState | None = None,
    steps_per_call: int = 1,
) -> Iterator[SamplerState]:
    """Yields the sampler's state after every `steps_per_call` steps; the last one holds the clips.

    Args:
      model: stage and parameters.
      sampling: steps, sampler, guidance, thresholding, augmentation.
      text_emb: as in `make_conditioning`.
      text_mask: likewise.
      low_res: likewise.
      keys: of each sample, not yet folded with the stage's name.
      state: where to go on; None starts from noise.
      steps_per_call: steps between two looks from the host; changes no bit of the result.
    """
    stage, output = model.stage, model.stage.output
    keys = sampling_keys.fold_in_name(keys, stage.name)
    sampler = make_sampler(stage, sampling)
    cond = make_conditioning(
        stage, sampling, text_emb=text_emb, text_mask=text_mask, low_res=low_res, keys=keys
    )
    if state is None:
        state = sampler.init(keys, shape=(output.frames, output.height, output.width, 3))
    run = functools.partial(run_steps, stage, sampling, model.params, cond=cond, keys=keys)
    yield from sampler.drive(state, run=run, steps_per_call=steps_per_call)
