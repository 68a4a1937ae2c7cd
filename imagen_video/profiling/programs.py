"""The programs that a stage runs, for devices that need not exist."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imagen_video.array_types import Conditioning, KeyArray
from imagen_video.cascade.stage import Stage, init_stage_params, stage_param_axes
from imagen_video.cascade.stage_sampler import run_steps
from imagen_video.data.transforms import BatchLayout
from imagen_video.profiling.flops import count_flops
from imagen_video.sampling.sampler import SamplerState
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout
from imagen_video.text.t5_encoder import T5_XXL, T5Config, T5Encoder, abstract_params, param_axes
from imagen_video.training.objectives import denoising_loss
from imagen_video.training.optimizer import make_optimizer
from imagen_video.training.placement import state_shardings
from imagen_video.training.stage_run import StageRun, pipeline_config
from imagen_video.training.state import abstract_state
from imagen_video.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceProgram:
    """A program of all devices of a layout.

    Attributes:
      lower: makes what the compiler reads.
      model_flops: that the model asks for on all devices together: of its convolutions and dot
        products, 2 per multiply-add, nothing computed twice, no padding.
    """

    lower: Callable[[], jax.stages.Lowered]
    model_flops: int


def make_program(kind: str, run: StageRun, layout: Layout, *, clips: int) -> DeviceProgram:
    """Returns one of a stage's programs.

    Args:
      kind: "train", "sample", or "encode" for T5-XXL on captions of the stage's length.
      run: the stage.
      layout: of the devices.
      clips: sampled, or captions encoded, at a time; a training batch has the run's size.

    Raises:
      ValueError: the stage does not read T5-XXL, or its batch cannot be spread over the devices.
    """
    stage = run.stage
    if kind == "train":
        return training_program(run, layout)
    if kind == "sample":
        return sampling_program(stage, layout, clips=clips)
    if stage.unet.text_in_dim != T5_XXL.emb_dim:
        raise ValueError(
            f"program: encode is T5-XXL's, {T5_XXL.emb_dim} wide;"
            f" stage.unet.text_in_dim is {stage.unet.text_in_dim}"
        )
    return encoding_program(T5_XXL, layout, captions=clips, tokens=stage.text_tokens)


def training_program(run: StageRun, layout: Layout) -> DeviceProgram:
    """One training step at the run's global batch, on cached caption embeddings.

    Its model FLOPs are three times those of the loss: forward, and twice as much backward.

    Raises:
      ValueError: the batch cannot be spread over the layout's devices.
    """
    stage, config = run.stage, run.train
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    init_fn = functools.partial(init_stage_params, stage)
    state = abstract_state(init_fn, optimizer)
    batch = training_batch(run, row_shards=layout.batch_shards)

    def loss_fn(params: Any, batch: Any, key: KeyArray, layout: Layout | None = layout):
        return denoising_loss(stage, run.objective, params, None, batch, key, layout=layout)

    forward = count_flops(
        functools.partial(loss_fn, layout=None),
        state.params,
        undivided_batch(run),
        jax.random.key(0),
        padded_taps=False,
    )

    step = make_train_step(
        loss_fn,
        optimizer,
        ema_decay=config.ema_decay,
        run_seed=config.seed,
        microbatches=config.microbatches,
        compiler_options=config.compiler_options,
        state_shardings=state_shardings(layout, stage_param_axes(stage), state),
        batch_sharding=layout.batch(microbatches=config.microbatches),
    )
    return DeviceProgram(
        lower=lambda: step.lower(state, batch),
        model_flops=3 * forward,
    )


def training_batch(run: StageRun, *, row_shards: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch as `data.pipeline.Batches` makes it, and captions' embeddings."""
    stage, data = run.stage, run.data
    config = pipeline_config(run, row_shards=row_shards)
    layout = BatchLayout.build(
        image_rows=config.image_rows,
        frames=config.frames,
        microbatches=config.microbatches,
        row_shards=row_shards,
        shards=range(row_shards),
    )
    u, shards, rows = layout.groups.shape
    b, m = shards * rows, shards * layout.captions
    height, width = data.train_crop or (stage.output.height, stage.output.width)
    n, d = stage.text_tokens, stage.unet.text_in_dim
    shapes = {
        "video": ((b, config.frames, height, width, 3), jnp.float32),
        "tokens": ((m, n), jnp.int32),
        "text_emb": ((m, n, d), jnp.bfloat16),
        "row": ((b,), jnp.int32),
    }
    if layout.frames is not None:
        shapes |= {
            "is_image": ((b,), jnp.bool_),
            "caption_index": ((b, config.frames), jnp.int32),
            "caption_id": ((m,), jnp.int32),
        }
    lead = (u,) if u > 1 else ()
    return {
        name: jax.ShapeDtypeStruct((*lead, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def undivided_batch(run: StageRun) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch in one part, on one device: each caption once, no empty slots.

    Divided, each device has as many slots as the one with the most captions needs.
    """
    whole = dataclasses.replace(run.train, microbatches=1)
    return training_batch(dataclasses.replace(run, train=whole), row_shards=1)


def sampling_program(stage: Stage, layout: Layout, *, clips: int) -> DeviceProgram:
    """The sampler's loop; its body, one guided evaluation and a step, is in it once."""

    def array(shape: tuple, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated)

    output = stage.output
    shape = (clips, output.frames, output.height, output.width, 3)
    clip = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=layout.sharding(axes.PIXELS, shape))
    params = jax.eval_shape(lambda: init_stage_params(stage, jax.random.key(0)))
    dtype = jnp.dtype(stage.sample_param_dtype)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        params,
        layout.params(stage_param_axes(stage), params),
    )
    text = (clips, stage.text_tokens)
    has_input = stage.input is not None
    cond = Conditioning(
        text_emb=array((*text, stage.unet.text_in_dim)),
        text_mask=array(text, jnp.bool_),
        low_res=clip if has_input else None,
        low_res_logsnr=array((clips,)) if has_input else None,
    )
    keys = array((clips,), jax.random.key(0, impl="threefry2x32").dtype)
    arguments = (
        params,
        SamplerState(z=clip, step=array((), jnp.int32)),
        array((), jnp.int32),
    )
    rest = {"cond": cond, "keys": keys}
    run = functools.partial(run_steps, stage, stage.sampling)
    return DeviceProgram(
        lower=lambda: run_steps.lower(stage, stage.sampling, *arguments, **rest, layout=layout),
        model_flops=count_flops(run, *arguments, **rest, padded_taps=False),
    )


def encoding_program(
    config: T5Config, layout: Layout, *, captions: int, tokens: int
) -> DeviceProgram:
    """The text encoder on a batch of captions, its parameters in its compute dtype."""
    encoder = T5Encoder(config)
    shapes = abstract_params(config)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, config.dtype, sharding=sharding),
        shapes,
        layout.params(param_axes(config), shapes),
    )
    shape = (captions, tokens)
    rows = layout.sharding((axes.BATCH, None), shape)
    encode = jax.jit(
        lambda params, tokens: encoder.apply({"params": params}, tokens), out_shardings=rows
    )
    arguments = (params, jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows))
    return DeviceProgram(
        lower=lambda: encode.lower(*arguments),
        model_flops=count_flops(encode, *arguments, padded_taps=False),
    )
