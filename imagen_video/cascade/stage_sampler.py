"""Samples one stage: conditioning once, then the sampler's loop, a compiled piece at a time."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from imagen_video.array_types import Conditioning, Video
from imagen_video.cascade.stage import Sampling, Stage, denoise_fn, low_res_condition
from imagen_video.cascade.weights import StageModel, on_devices
from imagen_video.diffusion.guidance import guided
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sampling.sampler import Sampler, SamplerState
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout, constrain
from imagen_video.sharding.processes import placed


def make_sampler(stage: Stage, sampling: Sampling) -> Sampler:
    """Returns the loop that `sampling` describes, on the stage's schedule."""
    return Sampler(stepper=sampling.stepper, num_steps=sampling.num_steps, schedule=stage.schedule)


@functools.partial(jax.jit, static_argnames=("stage", "sampling", "layout"))
def make_conditioning(
    stage: Stage,
    sampling: Sampling,
    *,
    text_emb: Float[Array, "b n d"],
    text_mask: Bool[Array, "b n"],
    low_res: Video | None,
    keys: Key[Array, " b"],
    layout: Layout | None = None,
) -> Conditioning:
    """Returns what all steps of a stage share; the low-res clip is noised here, once.

    Args:
      stage: to be sampled.
      sampling: how; its augmentation level applies.
      text_emb: frozen embeddings of each sample's caption.
      text_mask: True at real tokens.
      low_res: the previous stage's clip on this stage's input grid; None for the base model.
      keys: of each sample, folded with the stage's name.
      layout: how clips are spread over devices.
    """
    text_emb = jnp.where(text_mask[..., None], text_emb, 0.0)
    if low_res is None:
        return Conditioning(text_emb=text_emb, text_mask=text_mask)
    low_res = constrain(layout, low_res, axes.PIXELS)
    logsnr = sampling.augmentation.broadcast(len(low_res))
    eps = sampling_keys.normal(sampling_keys.fold_in_name(keys, "low_res"), low_res.shape[1:])
    low_res = low_res_condition(
        stage,
        low_res,
        eps=eps,
        logsnr=logsnr,
        height=stage.output.height,
        width=stage.output.width,
    )
    return Conditioning(
        text_emb=text_emb,
        text_mask=text_mask,
        low_res=constrain(layout, low_res, axes.PIXELS),
        low_res_logsnr=logsnr,
    )


@functools.partial(jax.jit, static_argnames=("stage", "sampling", "layout"))
def make_noise(
    stage: Stage, sampling: Sampling, keys: Key[Array, " b"], *, layout: Layout | None = None
) -> SamplerState:
    """Returns the sampler's state at t = 1; arguments as in `make_conditioning`."""
    output = stage.output
    shape = (output.frames, output.height, output.width, 3)
    state = make_sampler(stage, sampling).init(keys, shape=shape)
    return dataclasses.replace(state, z=constrain(layout, state.z, axes.PIXELS))


@functools.partial(
    jax.jit, static_argnames=("stage", "sampling", "layout"), donate_argnames=("state",)
)
def run_steps(
    stage: Stage,
    sampling: Sampling,
    params: Any,
    state: SamplerState,
    steps: Int[Array, ""],
    *,
    cond: Conditioning,
    keys: Key[Array, " b"],
    layout: Layout | None = None,
) -> SamplerState:
    """Returns the state after `steps` more guided steps; one program whatever their number."""
    predict_x = guided(
        denoise_fn(stage, params, layout=layout),
        cond,
        weights=sampling.guidance.weights(sampling.num_steps),
        thresholding=sampling.thresholding,
        parameterization=stage.prediction,
        reads_weight=stage.unet.guidance_weight,
    )
    sampler = make_sampler(stage, sampling)
    state = dataclasses.replace(state, z=constrain(layout, state.z, axes.PIXELS))
    state = sampler.run(state, steps=steps, predict_x=predict_x, keys=keys)
    return dataclasses.replace(state, z=constrain(layout, state.z, axes.PIXELS))


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
      model: stage and parameters, and how they are spread over devices.
      sampling: steps, sampler, guidance, thresholding, augmentation.
      text_emb: as in `make_conditioning`.
      text_mask: likewise.
      low_res: likewise.
      keys: of each sample, not yet folded with the stage's name.
      state: where to go on; None starts from noise.
      steps_per_call: steps between two looks from the host; changes no bit of the result.
    """
    stage, layout = model.stage, model.layout
    keys = sampling_keys.fold_in_name(keys, stage.name)
    params = on_devices(model)
    given = (text_emb, text_mask, low_res, keys)
    if layout is not None:
        # Small, or (low_res) from a stage that may lie on the devices in another way.
        given = placed(given, jax.tree.map(lambda _: layout.replicated, given))
        if state is not None:
            pixels = layout.sharding(axes.PIXELS, state.z.shape)
            state = placed(state, SamplerState(z=pixels, step=layout.replicated))
    text_emb, text_mask, low_res, keys = given
    cond = make_conditioning(
        stage,
        sampling,
        text_emb=text_emb,
        text_mask=text_mask,
        low_res=low_res,
        keys=keys,
        layout=layout,
    )
    if state is None:
        state = make_noise(stage, sampling, keys, layout=layout)
    run = functools.partial(run_steps, stage, sampling, params, cond=cond, keys=keys, layout=layout)
    sampler = make_sampler(stage, sampling)
    yield from sampler.drive(state, run=run, steps_per_call=steps_per_call)
