"""Distillation of one stage to 8 steps: guidance first, then halvings (arXiv 2210.02303, 2.7).

    imagen-video distill --config configs/distill.py:base --config.teacher=runs/base --workdir DIR
    imagen-video distill --config configs/distill.py:ssr1,tiny --config.teacher=... --workdir DIR

What follows the colon is STAGE[,SIZE[,VARIANT]]. VARIANT "oscillating" folds in the weights 15 and
1 of section 2.6.2, as a function of the sampling step; "range" makes a student that reads w.

The paper publishes the steps, 256 and 128 to 8, and the method. Training values are those of the
works that it cites: PD, progressive distillation (2202.00512), and GD, guided distillation
(2210.03142). Not run at full size.
"""

import copy

from ml_collections import ConfigDict, config_dict

from imagen_video_configs.stages import base as base_stage
from imagen_video_configs.stages import ssr1, ssr2, ssr3, tsr1, tsr2, tsr3

STAGES = dict(base=base_stage, tsr1=tsr1, ssr1=ssr1, ssr2=ssr2, tsr2=tsr2, tsr3=tsr3, ssr3=ssr3)
VARIANTS = ("", "oscillating", "range")


def get_config(which: str = "base") -> ConfigDict:
    """Returns the ladder of `which`, STAGE[,SIZE[,VARIANT]]."""
    name, size, variant = (*which.split(","), "", "")[:3]
    if name not in STAGES or variant not in VARIANTS or which.count(",") > 2:
        raise ValueError(
            f"{which!r} is not STAGE[,SIZE[,VARIANT]] with a stage of {', '.join(STAGES)} and a"
            " variant of oscillating, range"
        )
    size = size or "full"
    trained = STAGES[name].get_config(size)
    stage = trained.stage
    tiny = size == "tiny"
    guidance, thresholding = stage.sampling.guidance, stage.sampling.thresholding
    if variant == "oscillating":
        if stage.oscillating is None:
            raise ValueError(f"{name} has no oscillating guidance (IV section 2.6.2)")
        guidance, thresholding = stage.oscillating.guidance, stage.oscillating.thresholding
    if variant == "range":
        guidance = dict(kind="GuidanceRange", low=0.0, high=4.0 if name != "base" else 8.0)
    if guidance.get("weight") == 0.0:
        thresholding = dict(kind="NoThreshold")  # nothing to fold in, so no rung for it
    # Sampling clips the guided x, so the student learns the clipped one; GD clips in some runs.
    loss = "r_mse" if stage.get("low_res_error") else "snr_trunc"
    train = dict(
        batch_size=trained.train.batch_size,
        microbatches=trained.train.microbatches,
        compiler_options=trained.train.compiler_options,
        log_every=trained.train.log_every,
        checkpoint_every=trained.train.checkpoint_every,
        keep=1,
        num_steps=50_000,  # PD section 5.2: a halving; GD: likewise
        seed=0,
        ema_decay=0.0,  # PD's code: the student is the last parameters
        optimizer=dict(
            name="adam",
            learning_rate=1e-4,  # PD, ImageNet 64x64
            warmup_steps=0,  # PD
            schedule="linear",  # PD: to 0 in each halving
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=1.0,  # PD
        ),
    )
    config = ConfigDict(
        dict(
            stage=stage,
            teacher=config_dict.placeholder(str),
            distillation=dict(
                guidance=copy.deepcopy(guidance),
                thresholding=copy.deepcopy(thresholding),
                sampler="stochastic",  # IV section 2.7
                start_steps=256 if name == "base" else 128,  # IV Table 1
                final_steps=8,  # IV Table 1
                guided_loss=loss,  # our choice: PD's, see GuidedObjective
                loss=loss,  # snr_trunc: PD, GD
                max_augmentation=trained.objective.max_augmentation,
                max_error=0.1,  # our choice: a tenth of the variance of v
                eval_clips=4,
            ),
            data=trained.data,
            text=trained.text,
            # Apart: a ConfigDict keeps what is one object in two places as one.
            guided=copy.deepcopy(train),
            halving=copy.deepcopy(train),
            sharding=trained.sharding,
        )
    )
    # Stage one in as many steps, at a rate that falls: our choice. GD keeps it, at 1e-4 where a
    # student reads w, at 3e-4 where w is fixed.
    config.guided.ema_decay = 0.9999  # GD
    if tiny:
        demo(config, name)
    return config


def demo(config: ConfigDict, name: str) -> None:
    """Sets what suits the demonstration: short rungs on two CPU cores; all our choice.

    The base's guided student took 4,000 steps at 0.6 to 1.1 steps/s, its halving 28 min at 0.5 to
    0.6 steps/s, on two cores beside other work; the ladders of the other stages at most 17 min each
    on one core, but for ssr1's, the largest: 46 min, 0.4 to 0.6 steps/s. All ran under XLA_FLAGS of
    --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT.

    A base ladder of more and other steps gave no better student: mostly images, as the base itself
    was trained at last (data.image_share=0.8, guided.num_steps=5500,
    guided.optimizer.learning_rate=5e-4, guided.optimizer.warmup_steps=50, which were the halving's,
    too). Of 200 videos (evaluate
    --distilled --through ssr1 --num_samples 1, --seed 0 and 1) 72.5 and 74.0% have the right shape,
    71.5 and 75.0% with the student in the package (README); with that ladder's guided student in
    16 DDIM steps (--distilled=sr) 74.5% both times, with the original in 64 steps 75.5 and 76.0%,
    each ± 3: perhaps half of the loss comes with the 8 steps.

    Nor did ssr1's student gain by 8 steps and a longer ladder (distillation.final_steps=8,
    guided.num_steps=1200, halving.num_steps=600: 77 min beside other work): with it 72.0, 74.0,
    72.0 and 73.5% at --seed 0 to 3, with that of 4 steps in the package 71.5, 75.0, 72.0 and 72.5%.
    """
    config.guided.update(num_steps=4000 if name == "base" else 600, ema_decay=0.99)
    config.halving.num_steps = 1000 if name == "base" else 200
    for rung in (config.guided, config.halving):
        rung.checkpoint_every = 100
        rung.optimizer.learning_rate = 3e-4
        if name == "ssr1":
            rung.batch_size = 8  # It is trained with 16, in hours.
    # The other stages, given their low-resolution clip, are sampled in few DDIM steps as trained.
    # Few rungs with many steps each: there is time for some thousand steps in all.
    start, final = (16, 8) if name == "base" else (16, 4)
    config.distillation.update(start_steps=start, final_steps=final)
    if name == "base":
        # Of 400 videos (evaluate --distilled --through ssr1 --num_samples 1, --seed 0 and 1) 94.5%
        # have the right size; 92.5% with a student for the stochastic sampler, of 1,200 guided
        # steps; 94.3% with the original, ssr1's too (--nodistilled).
        config.distillation.sampler = "ddim"
