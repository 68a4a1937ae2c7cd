"""Spatial super-resolution 2: 48x80 to 192x320, 32 frames, 6 fps; tiny: 24x40 to 48x80, 16 frames.

Reproduces the 1.2B SSR model of Imagen Video (arXiv 2210.02303, Fig. 6), with
spatial self-attention at its two lowest levels (section 2.3 says that it has some).

    imagen-video train --config configs/stages/ssr2.py --workdir DIR         (not run at full size)
    imagen-video train --config configs/stages/ssr2.py:tiny --workdir DIR

The embedded weights: 900 steps, 7 min on one CPU core beside other work.
"""

from ml_collections import ConfigDict

from imagen_video_configs import base

SIZES = ("full", "tiny")


def get_config(size: str = "full") -> ConfigDict:
    """Returns stage, objective, training run and data of ssr2 at `size`."""
    if size not in SIZES:
        raise base.unknown_size(size, SIZES)
    config = base.super_resolution(size)
    stage = config.stage
    stage.name = "ssr2"
    stage.fps = 6.0  # IV Fig. 6
    if size == "tiny":
        return tiny(config)
    stage.input = dict(frames=32, height=48, width=80)  # IV Fig. 6
    stage.output = dict(frames=32, height=192, width=320)  # IV Fig. 6
    # Pixels folded 4 x 4 and wide levels suit a TPU: README, "On many devices". Our choice.
    stage.unet.update(
        space_to_depth=4,
        stem_channels=256,
        channels=(256, 512, 1024, 1280),
        strides=(1, 2, 2, 2),
        num_blocks=(3, 7, 4, 12),
        attention=("none", "none", "self", "self"),
        max_frames=32,
        text_dim=1024,
        emb_dim=512,
    )
    # Steps: IV Table 1. The weight and which of "3 or 5" (IV section 2.5) are our choice.
    stage.sampling = base.constant(steps=128, weight=3.0, snr=5.0)
    config.data.train_frames = 8  # IV Fig. 12
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The demo's ssr2, small enough for two CPU cores."""
    stage = config.stage
    stage.input = dict(frames=16, height=24, width=40)
    stage.output = dict(frames=16, height=48, width=80)
    stage.unet.update(
        stem_channels=32,
        channels=(48, 64),
        strides=(1, 2),
        num_blocks=(1, 1),
        attention=("none", "self"),
        max_frames=16,
        text_dim=64,
        emb_dim=128,
        space_to_depth=4,
    )
    stage.low_res_error = 0.05  # about the dataset's own: tests/test_configs.py
    config.train.num_steps = 900
    stage.sampling = base.demo_super_resolution(snr=5_000.0)
    config.data.update(train_frames=4)
    return config
