"""A stage sampled by 8 devices that share each clip, and by one; with the collectives it takes.

    sharded_sampling.py STAGE CONTEXT MESH       for example ssr1 frames 1x1x8x1

prints one JSON object: the largest difference, the largest result of an all-gather, and the
operations that an all-gather brings a whole clip to.
"""

import dataclasses
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import micro_cascade
import numpy as np
from sharded_stages import stage_of

from imagen_video.cascade.stage_sampler import (
    make_conditioning,
    make_noise,
    run_steps,
    sample_stage,
)
from imagen_video.cascade.weights import on_devices
from imagen_video.diffusion.thresholding import DynamicThreshold
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sharding.layout import ShardingConfig, make_layout
from imagen_video.sharding.mesh import MESH_AXES, MeshShape


def all_gathers(hlo):
    """The shape of every all-gather's result in the program, and the operation that it is for."""
    for line in hlo.splitlines():
        gather = re.search(r"= (.*?) all-gather(?:-start)?\(", line)
        operation = re.search(r'op_name="([^"]*)"', line)
        for dims in re.findall(r"\[([\d,]+)\]", gather[1] if gather else ""):
            yield tuple(map(int, dims.split(","))), operation[1] if operation else line.strip()


def is_whole(dims, output):
    """Whether an array has all frames and pixels of a clip at one of the two levels.

    Rows and columns, or the one axis that attention makes of them, with tokens joined or without.
    """
    levels = [(output.height // scale, output.width // scale) for scale in (1, 2)]
    captions = range(2 * micro_cascade.TOKENS)  # none, a caption, and what divides by 8
    return any(
        dims[i] % output.frames == 0
        and (dims[i + 1 : i + 3] == level or dims[i + 1] - math.prod(level) in captions)
        for i in range(len(dims) - 1)
        for level in levels
    )


def main(name, context, shape):
    stage = stage_of(name, context)
    sampling = dataclasses.replace(stage.sampling, thresholding=DynamicThreshold(), num_steps=4)
    model = micro_cascade.stage_model(stage)
    mesh = MeshShape(**dict(zip(MESH_AXES, map(int, shape.split("x")))))
    layout = make_layout(ShardingConfig(mesh=mesh, context=context))
    keys = sampling_keys.sample_keys(seeds=[1, 1], indices=[0, 1])
    text_emb, text_mask = micro_cascade.text_model().embed(["a red circle", "a blue star"])
    low_res = None
    if stage.input is not None:
        shape = (2, stage.input.frames, stage.input.height, stage.input.width, 3)
        low_res = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    given = dict(text_emb=text_emb, text_mask=jnp.asarray(text_mask), low_res=low_res, keys=keys)
    *_, alone = sample_stage(model, sampling, **given)
    spread = dataclasses.replace(model, layout=layout)
    *_, shared = sample_stage(spread, sampling, **given)

    own = given | {"keys": sampling_keys.fold_in_name(keys, stage.name)}
    own = jax.device_put(own, layout.replicated)
    cond = make_conditioning(stage, sampling, **own, layout=layout)
    noise = make_noise(stage, sampling, own["keys"], layout=layout)
    program = run_steps.lower(
        stage,
        sampling,
        on_devices(spread),
        noise,
        jnp.int32(1),
        cond=cond,
        keys=own["keys"],
        layout=layout,
    ).compile()
    gathered = list(all_gathers(program.as_text()))
    return {
        "difference": float(np.abs(np.asarray(shared.z) - np.asarray(alone.z)).max()),
        "cut": str(shared.z.sharding.spec),
        "clip": math.prod(shared.z.shape),
        "largest_all_gather": max((math.prod(dims) for dims, _ in gathered), default=0),
        "whole": sorted(
            {operation for dims, operation in gathered if is_whole(dims, stage.output)}
        ),
        "permutes": program.as_text().count("collective-permute"),
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(main(*sys.argv[1:])))
