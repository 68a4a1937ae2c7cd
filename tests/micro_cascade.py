"""Three stages small enough to compile in seconds, their every parameter drawn, for tests.

base 4x4x8 (frames x height x width) -> tsr1 8x4x8 -> ssr1 8x8x16, one to 16 channels each.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagen_video.cascade.cascade import Cascade
from imagen_video.cascade.stage import Grid, Sampling, Stage, stage_param_shapes
from imagen_video.cascade.weights import make_stage_model, save_stage
from imagen_video.data.sources import CaptionedShapes
from imagen_video.diffusion.augmentation import AugmentationLevel
from imagen_video.diffusion.guidance import ConstantGuidance, OscillatingGuidance
from imagen_video.diffusion.schedules import CosineSchedule
from imagen_video.diffusion.thresholding import DynamicThreshold, StaticClip
from imagen_video.networks.unet import UNetConfig
from imagen_video.sampling.steppers import Ancestral
from imagen_video.text.text_model import TextPaths, load_text_model
from imagen_video.training.loop import TrainConfig
from imagen_video.training.objectives import DenoisingConfig
from imagen_video.training.optimizer import OptimizerConfig
from imagen_video.training.stage_run import StageData, StageRun

TOKENS = 12
UNET = UNetConfig(
    stem_channels=8,
    channels=(8,),
    strides=(1,),
    num_blocks=(1,),
    attention=("self",),
    attention_every_block=True,
    temporal="attention",
    max_frames=4,
    low_res=False,
    text_in_dim=128,
    text_dim=8,
    emb_dim=16,
    head_dim=8,
    groups=2,
)
SR_UNET = dataclasses.replace(
    UNET,
    attention=("cross",),
    attention_every_block=False,
    temporal="convolution",
    low_res=True,
    space_to_depth=2,
)
SAMPLING = Sampling(
    num_steps=4,
    stepper=Ancestral(gamma=0.3),
    guidance=ConstantGuidance(weight=2.0),
    thresholding=StaticClip(),
)
OSCILLATING = dataclasses.replace(
    SAMPLING, guidance=OscillatingGuidance(), thresholding=DynamicThreshold()
)
BASE = Stage(
    name="base",
    output=Grid(frames=4, height=4, width=8),
    fps=3.0,
    input=None,
    unet=UNET,
    schedule=CosineSchedule(),
    text_tokens=TOKENS,
    sampling=SAMPLING,
    oscillating=OSCILLATING,
)
TSR1 = dataclasses.replace(
    BASE,
    name="tsr1",
    input=BASE.output,
    output=Grid(frames=8, height=4, width=8),
    fps=6.0,
    unet=SR_UNET,
    sampling=dataclasses.replace(SAMPLING, augmentation=AugmentationLevel(snr=5.0)),
    oscillating=None,
)
SSR1 = dataclasses.replace(
    TSR1, name="ssr1", input=TSR1.output, output=Grid(frames=8, height=8, width=16)
)
STAGES = (BASE, TSR1, SSR1)


def drawn_params(stage, seed=0):
    """Every parameter, zero-initialised ones too, so that outputs are of order 1."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.ndim < 2:
            return jnp.asarray(rng.normal(0.5, 0.5, leaf.shape), jnp.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim != 3 else leaf.shape[0]
        return jnp.asarray(rng.normal(0, 1 / np.sqrt(fan_in), leaf.shape), jnp.float32)

    return jax.tree.map(draw, stage_param_shapes(stage))


@functools.cache
def text_model():
    """The tokenizer and encoder inside the package."""
    return load_text_model(TextPaths(), num_tokens=TOKENS)


@functools.cache
def stage_model(stage, seed=0):
    """A stage with drawn parameters."""
    return make_stage_model(stage, drawn_params(stage, seed), text_digest=text_model().digest)


def cascade(stages=STAGES):
    """The whole, in memory."""
    return Cascade(models=tuple(map(stage_model, stages)), text=text_model())


def write_weights(folder, stages=STAGES):
    """Leaves STAGE.safetensors files in `folder`."""
    for stage in stages:
        save_stage(
            str(folder / f"{stage.name}.safetensors"),
            stage,
            drawn_params(stage),
            text_digest=text_model().digest,
            dtype="float32",
        )
    return folder


def stage_run(stage, **train):
    """A training run of a few steps, half of its rows packed images."""
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, schedule="constant")
    config = {"num_steps": 4, "batch_size": 2, "ema_decay": 0.5, "optimizer": optimizer}
    return StageRun(
        stage=stage,
        objective=DenoisingConfig(loss="v_mse"),
        data=StageData(source=CaptionedShapes(seconds=4 / 3), image_share=0.5),
        text=TextPaths(),
        train=TrainConfig(**config | train),
    )
