"""The programs that a stage runs, lowered for devices that need not exist."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from imagen_video.array_types import Conditioning, KeyArray
from imagen_video.cascade.stage import Stage, init_stage_params, stage_param_axes
from imagen_video.cascade.stage_sampler import run_steps
from imagen_video.data.transforms import BatchLayout
from imagen_video.sampling.sampler import SamplerState
from imagen_video.sharding import axes
from imagen_video.sharding.layout import Layout
from imagen_video.training.objectives import denoising_loss
from imagen_video.training.optimizer import make_optimizer
from imagen_video.training.placement import state_shardings
from imagen_video.training.stage_run import StageRun, pipeline_config
from imagen_video.training.state import abstract_state
from imagen_video.training.step import make_train_step


def lower_training(run: StageRun, layout: Layout) -> jax.stages.Lowered:
    """Lowers one training step at the run's global batch, on cached caption embeddings.

    Raises:
      ValueError: the batch cannot be spread over the layout's devices.
    """
    stage, config = run.stage, run.train
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    init_fn = functools.partial(init_stage_params, stage)
    state = abstract_state(init_fn, optimizer)
    batch = training_batch(run, row_shards=layout.batch_shards)

    def loss_fn(params: Any, batch: Any, key: KeyArray):
        def cached(tokens: Any) -> Any:
            return batch["text_emb"]

        return denoising_loss(stage, run.objective, params, cached, batch, key, layout=layout)

    step = make_train_step(
        loss_fn,
        optimizer,
        ema_decay=config.ema_decay,
        run_seed=config.seed,
        microbatches=config.microbatches,
        state_shardings=state_shardings(layout, stage_param_axes(stage), state),
        batch_sharding=layout.batch(microbatches=config.microbatches),
    )
    return step.lower(state, batch)


def training_batch(run: StageRun, *, row_shards: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch as `data.pipeline.Batches` makes it, and captions' embeddings."""
    stage, data = run.stage, run.data
    config = pipeline_config(run, row_shards=row_shards)
    layout = BatchLayout.build(
        image_rows=config.image_rows,
        frames=config.frames,
        microbatches=config.microbatches,
        row_shards=row_shards,
        process_index=0,
        process_count=1,
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


def lower_sampling(stage: Stage, layout: Layout, *, clips: int) -> jax.stages.Lowered:
    """Lowers the sampler's loop; its body, one guided evaluation and a step, is in it once."""

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
    return run_steps.lower(
        stage,
        stage.sampling,
        params,
        SamplerState(z=clip, step=array((), jnp.int32)),
        array((), jnp.int32),
        cond=cond,
        keys=keys,
        layout=layout,
    )
