"""Spatial super-resolution 1: 24x40 to 48x80, 32 frames, 6 fps; tiny: 12x20 to 24x40, 16 frames.

Reproduces the 1.4B SSR model of Imagen Video (arXiv 2210.02303, Fig. 6), with
spatial self-attention (section 2.3).

    imagen-video train --config configs/stages/ssr1.py --workdir DIR         (not run at full size)
    imagen-video train --config configs/stages/ssr1.py:tiny --workdir DIR

The embedded weights: 3,200 steps of 3 clips and 104 images (train.seed=3), 1 h 11 min on two CPU
cores (0.75 to 0.87 steps/s, at times beside other work), loss 0.045 at the end. Then 2,800 more
(train.init_from those weights, train.optimizer.learning_rate=1.5e-3, train.num_steps=2800,
train.seed=4), 1 h 9 min, half of it beside other work (0.4 to 0.9 steps/s), loss 0.039. Both ran
under the XLA_FLAGS of configs/distill.py.
"""

from ml_collections import ConfigDict

from imagen_video_configs import base

SIZES = ("full", "tiny")


def get_config(size: str = "full") -> ConfigDict:
    """Returns stage, objective, training run and data of ssr1 at `size`."""
    if size not in SIZES:
        raise base.unknown_size(size, SIZES)
    config = base.super_resolution(size)
    stage = config.stage
    stage.name = "ssr1"
    stage.fps = 6.0  # IV Fig. 6
    if size == "tiny":
        return tiny(config)
    stage.input = dict(frames=32, height=24, width=40)  # IV Fig. 6
    stage.output = dict(frames=32, height=48, width=80)  # IV Fig. 6
    stage.unet.update(
        stem_channels=256,
        channels=(512, 1024, 1536, 2048),
        strides=(2, 2, 2, 2),
        num_blocks=(5, 4, 3, 3),
        attention=("none", "self", "self", "self"),
        max_frames=32,
        text_dim=1024,
        emb_dim=2048,
    )
    # Steps: IV Table 1. The weight and which of "3 or 5" (IV section 2.5) are our choice.
    stage.sampling = base.constant(steps=128, weight=3.0, snr=5.0)
    stage.oscillating = base.oscillating(stage.sampling)  # IV section 2.6.2: up to 48x80
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The demo's ssr1, small enough for two CPU cores."""
    stage = config.stage
    stage.input = dict(frames=16, height=12, width=20)
    stage.output = dict(frames=16, height=24, width=40)
    stage.unet.update(
        stem_channels=48,
        channels=(48, 128),
        strides=(1, 2),
        num_blocks=(1, 1),
        attention=("none", "self"),
        max_frames=16,
        head_dim=32,
        text_dim=128,
        emb_dim=192,
        space_to_depth=2,
    )
    stage.low_res_error = 0.07  # about the dataset's own: tests/test_configs.py
    # Draws by the caption what 12x20 pixels cannot hold: many captions a step, conditioning noise
    # under which shapes are lost, guidance.
    config.train.update(num_steps=3_200, batch_size=16)
    config.data.image_share = 0.8
    config.objective.update(max_augmentation=0.6, logit_normal=(0.3, 1.2))
    stage.sampling = base.demo_super_resolution(snr=100.0, steps=8, weight=2.0)
    stage.oscillating = base.oscillating(stage.sampling)  # IV section 2.6.2: up to 48x80
    config.data.update(train_frames=8)
    return config
