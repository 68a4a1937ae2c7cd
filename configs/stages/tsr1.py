"""Temporal super-resolution 1: 16 to 32 frames of 24x40, 6 fps; tiny: 8 to 16 of 12x20.

Reproduces the 1.7B TSR model of Imagen Video (arXiv 2210.02303, Fig. 6). Section 2.3 names
no spatial self-attention for it, so it reads the caption alone.

    imagen-video train --config configs/stages/tsr1.py --workdir DIR         (not run at full size)
    imagen-video train --config configs/stages/tsr1.py:tiny --workdir DIR

The embedded weights: 2,400 steps, 28 min on one CPU core beside other work (from step 700 on with
objective.max_augmentation=0.1).
"""

from ml_collections import ConfigDict

from imagen_video_configs import base

SIZES = ("full", "tiny")


def get_config(size: str = "full") -> ConfigDict:
    """Returns stage, objective, training run and data of tsr1 at `size`."""
    if size not in SIZES:
        raise base.unknown_size(size, SIZES)
    config = base.super_resolution(size)
    stage = config.stage
    stage.name = "tsr1"
    stage.fps = 6.0  # IV Fig. 6
    if size == "tiny":
        return tiny(config)
    stage.input = dict(frames=16, height=24, width=40)  # IV Fig. 6
    stage.output = dict(frames=32, height=24, width=40)  # IV Fig. 6
    stage.unet.update(
        stem_channels=512,
        channels=(512, 1024, 1536, 2048),
        strides=(1, 2, 2, 2),
        num_blocks=(2, 5, 4, 4),
        attention=("none", "cross", "cross", "cross"),
        max_frames=32,
        text_dim=1024,
        emb_dim=2048,
    )
    # Steps: IV Table 1. The weight and which of "3 or 5" (IV section 2.5) are our choice.
    stage.sampling = base.constant(steps=128, weight=3.0, snr=5.0)
    stage.oscillating = base.oscillating(stage.sampling)  # IV section 2.6.2: up to 48x80
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The demo's tsr1, small enough for two CPU cores."""
    stage = config.stage
    stage.input = dict(frames=8, height=12, width=20)
    stage.output = dict(frames=16, height=12, width=20)
    stage.unet.update(
        stem_channels=48,
        channels=(48, 64),
        strides=(1, 2),
        num_blocks=(1, 1),
        attention=("cross", "cross"),
        max_frames=16,
        text_dim=64,
        emb_dim=128,
        space_to_depth=2,
    )
    stage.low_res_error = 0.05  # about the dataset's own: tests/test_configs.py
    config.train.num_steps = 2_400
    stage.sampling = base.demo_super_resolution(snr=10_000.0)
    stage.oscillating = base.oscillating(stage.sampling)  # IV section 2.6.2: up to 48x80
    return config
