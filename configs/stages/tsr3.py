"""Temporal super-resolution 3: 64 to 128 frames of 192x320, 24 fps; tiny: 32 to 64 of 48x80.

Reproduces the 630M TSR model of Imagen Video (arXiv 2210.02303, Fig. 6).

    imagen-video train --config configs/stages/tsr3.py --workdir DIR         (not run at full size)
    imagen-video train --config configs/stages/tsr3.py:tiny --workdir DIR

The embedded weights: 1,000 steps from tsr2 as it was after 700 (--config.train.init_from=TSR2), 16
min on one CPU core beside other work (from step 500 on with objective.max_augmentation=0.1).
"""

from ml_collections import ConfigDict

from imagen_video_configs import base

SIZES = ("full", "tiny")


def get_config(size: str = "full") -> ConfigDict:
    """Returns stage, objective, training run and data of tsr3 at `size`."""
    if size not in SIZES:
        raise base.unknown_size(size, SIZES)
    config = base.super_resolution(size)
    stage = config.stage
    stage.name = "tsr3"
    stage.fps = 24.0  # IV Fig. 6
    if size == "tiny":
        return tiny(config)
    stage.input = dict(frames=64, height=192, width=320)  # IV Fig. 6
    stage.output = dict(frames=128, height=192, width=320)  # IV Fig. 6
    # Pixels folded 4 x 4 and wide levels suit a TPU: README, "On many devices". Our choice.
    stage.unet.update(
        space_to_depth=4,
        stem_channels=256,
        channels=(256, 512, 1024, 1280),
        strides=(1, 2, 2, 2),
        num_blocks=(3, 7, 4, 4),
        attention=("none", "none", "cross", "cross"),
        max_frames=128,
        text_dim=1024,
        emb_dim=512,
    )
    # Steps: IV Table 1. The weight and which of "3 or 5" (IV section 2.5) are our choice.
    stage.sampling = base.constant(steps=128, weight=3.0, snr=5.0)
    config.data.update(train_frames=16, train_crop=(96, 160))
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The demo's tsr3, small enough for two CPU cores."""
    stage = config.stage
    stage.input = dict(frames=32, height=48, width=80)
    stage.output = dict(frames=64, height=48, width=80)
    stage.unet.update(
        stem_channels=32,
        channels=(48, 64),
        strides=(1, 2),
        num_blocks=(1, 1),
        attention=("none", "cross"),
        max_frames=64,
        text_dim=64,
        emb_dim=128,
        space_to_depth=4,
    )
    stage.low_res_error = 0.03  # about the dataset's own: tests/test_configs.py
    config.train.num_steps = 1_000
    stage.sampling = base.demo_super_resolution(snr=10_000.0)
    config.data.update(train_frames=4)
    return config
