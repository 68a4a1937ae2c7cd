"""Base model: caption to 16 frames of 24x40 at 3 fps; tiny: 8 frames of 12x20.

Reproduces the first of the seven models of Imagen Video (arXiv 2210.02303, Fig. 6, 5.6B) and the
two smaller ones of its scaling study (section 3.2, "500m" and "1.6b": base channels and depth
grow; here depth only from the first to the second, our choice). The paper publishes no widths or
depths: these were searched until the counts matched.

    imagen-video train --config configs/stages/base.py --workdir DIR         (not run at full size)
    imagen-video train --config configs/stages/base.py:tiny --workdir DIR

The embedded weights: 20,000 steps of 8 clips and 64 images; 1 h 55 min on one of two CPU cores
beside other work (0.5 to 0.9 steps/s), then 3 h 15 min on both (0.8 to 1.5 steps/s); loss 0.024
at the end. The first 5,000 steps were a whole run, its rate falling to zero; it was resumed as
one of 14,000, then as one of 20,000. Then 4,500 steps of 3 clips and 104 images, for shapes are
learned from images as well and motions were right already (train.init_from the weights of 20,000
steps, train.optimizer.learning_rate=5e-4, warmup_steps=100, train.seed=18, data.image_share=0.8):
1 h 15 min on two CPU cores, half of it beside other work (0.4 to 1.5 steps/s), loss 0.027 at the
end, of more images than before. Then 8,000 more so (learning_rate=7e-4, seed=20,
objective.logit_normal=(0.6,1.0)): 1 h 36 min on two CPU cores (1.4 steps/s), loss 0.0178 at the
end, of other noise levels than before.
"""

from ml_collections import ConfigDict

from imagen_video_configs import base

SIZES = ("full", "1.6b", "500m", "tiny")


def get_config(size: str = "full") -> ConfigDict:
    """Returns stage, objective, training run and data of the base model at `size`."""
    if size not in SIZES:
        raise base.unknown_size(size, SIZES)
    config = base.config(size)
    stage = config.stage
    stage.name = "base"
    stage.fps = 3.0  # IV Fig. 6
    stage.unet.update(
        temporal="attention",  # IV section 2.3
        attention_every_block=True,  # VDM section 3
        low_res=False,
    )
    if size == "tiny":
        return tiny(config)
    stage.output = dict(frames=16, height=24, width=40)  # IV Fig. 6
    width, num_blocks = {
        "full": (768, (5, 6, 5, 5)),
        "1.6b": (384, (5, 6, 5, 5)),
        "500m": (256, (4, 4, 3, 3)),
    }[size]
    stage.unet.update(
        stem_channels=width,
        channels=(width, 2 * width, 3 * width, 4 * width),  # IM F.1: multipliers 1, 2, 3, 4
        strides=(1, 2, 2, 2),
        num_blocks=num_blocks,
        attention=("none", "self", "self", "self"),
        max_frames=16,
        # Our choice, because a TPU's tiles are 128 wide: with its gradient, temporal attention at
        # 24x40 takes half the time that it takes with heads of 64 (compiler's estimate).
        head_dim=128,
        # Three, for 51% of the peak in training (compiler's estimate); the other stages pass their
        # 30% with one.
        unrolled_levels=3,
        text_dim=2048,
        emb_dim=2048,
    )
    stage.sampling = base.constant(steps=256, weight=6.0)  # IV Table 1
    stage.oscillating = base.oscillating(stage.sampling)
    config.train.optimizer.name = "adafactor"  # IM F.1, its base model
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The demo's base model, small enough for two CPU cores."""
    stage = config.stage
    stage.output = dict(frames=8, height=12, width=20)
    stage.unet.update(
        stem_channels=64,
        channels=(64, 128),
        strides=(1, 2),
        num_blocks=(1, 2),
        attention=("none", "self"),
        max_frames=8,
        head_dim=32,
        text_dim=192,
        emb_dim=256,
        space_to_depth=2,
    )
    stage.sampling = base.constant(steps=64, weight=3.0)
    stage.oscillating = base.oscillating(stage.sampling)
    config.train.num_steps = 20_000
    # A packed row shows eight captions, a video one: shapes and colours are learned sooner.
    config.data.image_share = 0.5
    return config
