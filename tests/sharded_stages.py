"""A stage's loss, gradients and one evaluation, on a mesh of 8 devices and on one, compared.

A program, because the number of devices is fixed when JAX starts:

    sharded_stages.py KIND,MESH,CONTEXT ...   for example ssr1,1x1x8x1,frames

prints a JSON object for each argument. KIND is a stage of the micro cascade, or ssr1+self.
"""

import dataclasses
import functools
import json
import logging
import math
import re
import sys

import absl.logging
import jax
import jax.numpy as jnp
import micro_cascade
import numpy as np

from imagen_video.array_types import Conditioning
from imagen_video.cascade.stage import Grid, denoise_fn, stage_param_axes
from imagen_video.data.sources import CaptionedShapes
from imagen_video.sharding import axes
from imagen_video.sharding.layout import ShardingConfig, make_layout
from imagen_video.sharding.mesh import MESH_AXES, MeshShape
from imagen_video.training.objectives import DenoisingConfig, denoising_loss
from imagen_video.training.stage_run import make_batches

ROWS = 8
# Two levels, so that a clip is split at two resolutions; heads and channels for a tensor axis.
LEVELS = dict(
    stem_channels=16,
    channels=(16, 32),
    strides=(1, 2),
    num_blocks=(1, 3),
    groups=4,
    head_dim=8,
    text_dim=16,
)


def stage_of(kind, context):
    """A micro stage of 16 frames; twice as tall where the height is split 8 ways at two levels.

    "ssr1+self" attends to pixels at the second level, as the stages up to 192x320 do.
    """
    name, *attends = kind.split("+")
    stage = {stage.name: stage for stage in micro_cascade.STAGES}[name]
    attention = ("self", "self") if name == "base" else ("none", *(attends or ("cross",)))
    unet = dataclasses.replace(
        stage.unet, **LEVELS, attention=attention, space_to_depth=1, max_frames=16
    )
    output = Grid(frames=16, height=32 if context == "frames" else 64, width=4)
    shrink = {"base": None, "tsr1": (2, 1), "ssr1": (1, 2)}[name]
    small = shrink and Grid(
        frames=output.frames // shrink[0],
        height=output.height // shrink[1],
        width=output.width // shrink[1],
    )
    return dataclasses.replace(stage, unet=unet, output=output, input=small)


@functools.cache
def given(kind, context):
    """Stage, drawn parameters and a batch, half of it packed images."""
    stage = stage_of(kind, context)
    run = micro_cascade.stage_run(stage, batch_size=ROWS)
    source = CaptionedShapes(seconds=6.0)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, source=source))
    one = ShardingConfig(mesh=MeshShape(data=8, fsdp=1))
    batch = next(make_batches(run, micro_cascade.text_model(), make_layout(one)))
    return stage, micro_cascade.drawn_params(stage), batch


def programs(stage, layout):
    """Loss with gradients, and one evaluation."""
    text = micro_cascade.text_model()
    config = DenoisingConfig(loss="v_mse")

    def loss(params, batch):
        key = jax.random.key(7, impl="threefry2x32")
        return denoising_loss(stage, config, params, text.encoder, batch, key, layout=layout)[0]

    def evaluate(params, z_t, logsnr_t, cond):
        return denoise_fn(stage, params, layout=layout)(z_t, logsnr_t, cond)

    return jax.value_and_grad(loss), evaluate


def evaluation_inputs(stage):
    rng = np.random.default_rng(1)
    output = stage.output
    clip = (ROWS, output.frames, output.height, output.width, 3)
    has_input = stage.input is not None
    cond = Conditioning(
        text_emb=jnp.asarray(rng.normal(size=(ROWS, 12, 128)), jnp.float32),
        text_mask=jnp.asarray(rng.uniform(size=(ROWS, 12)) < 0.7),
        low_res=jnp.asarray(rng.normal(size=clip), jnp.float32) if has_input else None,
        low_res_logsnr=jnp.linspace(-2, 2, ROWS) if has_input else None,
    )
    return jnp.asarray(rng.normal(size=clip), jnp.float32), jnp.linspace(-3, 3, ROWS), cond


@functools.cache
def unsharded(kind, context):
    stage, params, batch = given(kind, context)
    value_and_grad, evaluate = programs(stage, None)
    loss, grads = jax.jit(value_and_grad)(params, batch)
    return loss, grads, jax.jit(evaluate)(params, *evaluation_inputs(stage))


def relative(ours, truth):
    ours, truth = (np.asarray(a, np.float64) for a in (ours, truth))
    return float(np.max(np.abs(ours - truth)) / (np.max(np.abs(truth)) + 1e-12))


class Fallbacks(logging.Handler):
    """Keeps what the layout says of clips with an axis that it could not cut as it should."""

    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        if "not cut over" not in record.msg:
            return
        name, names, shape, mesh_axes = record.args
        # Three colours divide by nothing; all else of the first two levels does.
        if axes.FRAMES in names and shape[names.index(name)] != 3:
            self.found.append((name, shape, mesh_axes))


def watched():
    """Has the layout's messages kept from now on."""
    fallbacks = Fallbacks()
    absl.logging.set_verbosity(absl.logging.INFO)
    absl.logging.get_absl_logger().addHandler(fallbacks)
    return fallbacks


def compare(kind, mesh, context, fallbacks):
    """Largest relative differences, and what the compiled training program does."""
    fallbacks.found.clear()
    shape = MeshShape(**dict(zip(MESH_AXES, map(int, mesh.split("x")))))
    layout = make_layout(ShardingConfig(mesh=shape, context=context))
    stage, params, batch = given(kind, context)
    value_and_grad, evaluate = programs(stage, layout)
    shardings = layout.params(stage_param_axes(stage), params)
    params = jax.device_put(params, shardings)
    batch = jax.device_put(batch, layout.batch())

    step = jax.jit(value_and_grad, out_shardings=(layout.replicated, shardings))
    compiled = step.lower(params, batch).compile()
    loss, grads = compiled(params, batch)
    out = jax.jit(evaluate)(params, *evaluation_inputs(stage))
    truth = unsharded(kind, context)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(grads)]
    errors = dict(zip(paths, map(relative, jax.tree.leaves(grads), jax.tree.leaves(truth[1]))))
    hlo = compiled.as_text()
    levels = [
        layout.spec(axes.CLIP, (ROWS, 16, stage.output.height // 2**i, 4 // 2**i, 16 * 2**i))
        for i in range(2)
    ]
    return {
        "loss": relative(loss, truth[0]),
        "gradient": max(errors.values()),
        "worst": max(errors, key=errors.get),
        "evaluation": relative(out, truth[2]),
        "split": all("context" in str(level) for level in levels),
        "fallbacks": list(fallbacks.found),
        "devices": len(out.sharding.device_set),
        "collectives": {
            name: len(re.findall(rf" {name}(?:-start)?\(", hlo))
            for name in (
                "all-gather",
                "all-reduce",
                "reduce-scatter",
                "collective-permute",
                "all-to-all",
            )
        },
        "largest_all_gather": max(
            [
                math.prod(map(int, dims.split(",")))
                for dims in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(", hlo)
            ],
            default=0,
        ),
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    fallbacks = watched()
    for argument in sys.argv[1:]:
        found = compare(*argument.split(","), fallbacks)
        print(json.dumps({"case": argument} | found), flush=True)
