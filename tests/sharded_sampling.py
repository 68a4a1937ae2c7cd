"""A stage sampled by 8 devices that share each clip, and by one; with the collectives it takes.

    sharded_sampling.py STAGE CONTEXT

prints one JSON object: the largest difference, and the largest result of an all-gather.
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
from imagen_video.cascade.weights import placed
from imagen_video.diffusion.thresholding import DynamicThreshold
from imagen_video.sampling import keys as sampling_keys
from imagen_video.sharding.layout import ShardingConfig, make_layout
from imagen_video.sharding.mesh import MeshShape


def main(name, context):
    stage = stage_of(name, context)
    sampling = dataclasses.replace(stage.sampling, thresholding=DynamicThreshold(), num_steps=4)
    model = micro_cascade.stage_model(stage)
    mesh = MeshShape(data=1, fsdp=1, context=8, tensor=1)
    layout = make_layout(ShardingConfig(mesh=mesh, context=context))
    keys = sampling_keys.sample_keys(seeds=[1, 1], indices=[0, 1])
    text_emb, text_mask = micro_cascade.text_model().embed(["a red circle", "a blue star"])
    low_res = None
    if stage.input is not None:
        shape = (2, stage.input.frames, stage.input.height, stage.input.width, 3)
        low_res = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    given = dict(text_emb=text_emb, text_mask=jnp.asarray(text_mask), low_res=low_res, keys=keys)
    *_, alone = sample_stage(model, sampling, **given)
    spread = placed(model, layout)
    *_, shared = sample_stage(spread, sampling, **given)

    own = given | {"keys": sampling_keys.fold_in_name(keys, stage.name)}
    own = jax.device_put(own, layout.replicated)
    cond = make_conditioning(stage, sampling, **own, layout=layout)
    noise = make_noise(stage, sampling, own["keys"], layout=layout)
    program = run_steps.lower(
        stage,
        sampling,
        spread.params,
        noise,
        jnp.int32(1),
        cond=cond,
        keys=own["keys"],
        layout=layout,
    ).compile()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", program.as_text())
    return {
        "difference": float(np.abs(np.asarray(shared.z) - np.asarray(alone.z)).max()),
        "cut": str(shared.z.sharding.spec),
        "clip": math.prod(shared.z.shape),
        "largest_all_gather": max(
            (math.prod(map(int, dims.split(","))) for dims in gathered if dims), default=0
        ),
        "permutes": program.as_text().count("collective-permute"),
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(main(*sys.argv[1:])))
