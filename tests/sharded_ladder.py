"""A ladder of two rungs on all devices there are; prints what became of each as JSON.

A program, because the number of devices is fixed when JAX starts:

    sharded_ladder.py WORKDIR
"""

import dataclasses
import json
import pathlib
import sys

import jax
import micro_cascade

from imagen_video.cascade.weights import save_stage
from imagen_video.diffusion.guidance import GuidanceRange
from imagen_video.diffusion.thresholding import DynamicThreshold
from imagen_video.sharding.layout import ShardingConfig
from imagen_video.sharding.mesh import MeshShape
from imagen_video.training.ladder import distill
from imagen_video.training.optimizer import OptimizerConfig
from imagen_video.training.rungs import Distillation, DistillRun

STAGE = dataclasses.replace(micro_cascade.SSR1, low_res_error=0.3)


def climb(workdir):
    """Folds a range of weights in, thresholded, then halves two steps to one."""
    workdir.mkdir(parents=True)
    text, teacher = micro_cascade.text_model(), workdir / "ssr1.safetensors"
    params = micro_cascade.drawn_params(STAGE)
    save_stage(str(teacher), STAGE, params, text_digest=text.digest, dtype="float32")
    mesh = MeshShape(data=2, fsdp=2, context=2) if jax.device_count() == 8 else MeshShape()
    optimizer = OptimizerConfig(learning_rate=1e-4, warmup_steps=0, schedule="linear")
    trained = micro_cascade.stage_run(STAGE, num_steps=2, batch_size=8, optimizer=optimizer)
    run = DistillRun(
        stage=STAGE,
        teacher=str(teacher),
        distillation=Distillation(
            guidance=GuidanceRange(low=1.0, high=4.0),
            thresholding=DynamicThreshold(percentile=90.0),
            sampler="ddim",
            start_steps=2,
            final_steps=1,
            loss="r_mse",
        ),
        data=trained.data,
        text=trained.text,
        guided=trained.train,
        halving=trained.train,
        sharding=ShardingConfig(mesh=mesh),
    )
    return [dataclasses.asdict(result) for result in distill(run, text=text, workdir=str(workdir))]


if __name__ == "__main__":
    found = climb(pathlib.Path(sys.argv[1]))
    print(json.dumps({"devices": jax.device_count(), "rungs": found}))
