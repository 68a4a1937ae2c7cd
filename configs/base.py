"""What all seven stages share.

A stage's file starts from `config()` or `super_resolution()` and sets what is its own.

Published values carry their source; every other value is our choice. Sources: IV is Imagen Video
(arXiv 2210.02303), IM Imagen (2205.11487), VDM Video Diffusion Models (2204.03458), PD progressive
distillation (2202.00512).
"""

from ml_collections import ConfigDict, config_dict


def config(size: str) -> ConfigDict:
    """Returns the shared defaults of a stage at `size`, "full" (the paper's) or "tiny" (a demo)."""
    tiny = size == "tiny"
    config = ConfigDict(
        dict(
            stage=dict(
                prediction="v",  # IV section 2.4
                # IV names a continuous cosine schedule; the range is VDM's and PD's.
                schedule=dict(logsnr_min=-20.0, logsnr_max=20.0),
                low_res_error=config_dict.placeholder(float),  # None: as published
                fill="repeat",  # IV section 2.3 offers repeated and blank frames
                text_tokens=32 if tiny else 128,  # IM and IV publish no length
                unet=dict(
                    head_dim=16 if tiny else 64,  # IM F.1, VDM: 64
                    groups=8 if tiny else 32,
                    text_in_dim=128 if tiny else 4096,  # T5-XXL: 4096
                    guidance_weight=False,
                    # 4 in the four stages of 192x320 and above. Our choice, because with the widths
                    # that go with it they sample in about two thirds of the time (compiler's
                    # estimate: README), and arXiv 2301.11093 reports no loss of quality; we have
                    # trained no form.
                    space_to_depth=1,
                    scan_blocks=True,
                    # Our choice: UNetConfig says why, README what it gained.
                    unrolled_levels=0 if tiny else 1,
                    # All blocks of a level alike, so that XLA compiles a scanned one once (our
                    # choice). The embedded weights are of networks whose first blocks read both.
                    project_skips=not tiny,
                    remat="none" if tiny else "products",
                    dtype="float32" if tiny else "bfloat16",
                ),
                sample_param_dtype="float32" if tiny else "bfloat16",
                input=None,
                oscillating=None,
            ),
            objective=dict(
                loss="eps_mse",  # IV Eq. 2
                caption_dropout=0.1,  # IM section 2.2
                # IV section 2.5 says that the level is random; CDM (2106.15282) and IM draw it so.
                max_augmentation=1.0,
                logit_normal=config_dict.placeholder(tuple),  # None: t ~ U(0, 1), IV section 2
            ),
            train=dict(
                num_steps=1_000_000,
                batch_size=2048,  # IM F.1
                microbatches=1,
                compiler_options=(),
                seed=0,
                ema_decay=0.9999,  # VDM Appendix A
                optimizer=dict(
                    name="adam",  # IM F.2
                    learning_rate=1e-4,  # IM F.1, F.2
                    warmup_steps=10_000,  # IM F.1, F.2
                    schedule="cosine",  # IM F.1
                    b1=0.9,  # IM F.2
                    b2=0.999,  # IM F.2
                    eps=1e-8,  # IM F.2
                    weight_decay=0.0,
                    clip_norm=1.0,  # PD
                ),
                log_every=100,
                checkpoint_every=1000,
                keep=3,
                keep_every=config_dict.placeholder(int),
                max_skipped=100,
                init_from=config_dict.placeholder(str),
            ),
            # Clips sampled while the stage is trained. At full size samples.every=N asks for them:
            # they need memory beside the training's state, which has not been measured.
            samples=dict(
                every=1000 if tiny else config_dict.placeholder(int),
                count=4,
                num_steps=config_dict.placeholder(int),  # None: as many as it is sampled in
            ),
            sharding=dict(
                # All devices cut rows and parameters; a slice's recipe says more.
                mesh=dict(data=1, fsdp=-1, context=1, tensor=1),
                context="frames",
                min_rows=4,
            ),
            data=dict(
                source=captioned_shapes(seconds=64 / 24 if tiny else 128 / 24),
                image_share=0.25,  # IV publishes no ratio
                train_frames=config_dict.placeholder(int),  # None: all frames of the stage
                train_crop=config_dict.placeholder(tuple),  # None: whole frames
                num_threads=1 if tiny else 16,
                num_workers=0 if tiny else 8,
                echo=1,  # more where reading is slower than training (arXiv 1907.05550)
            ),
            # The public T5-XXL (method of IV section 2.2), or the demo's own encoder.
            text=dict(
                dtype="float32" if tiny else "bfloat16",
                # A folder of `imagen-video embed-text`; None runs the encoder in every step.
                cache=config_dict.placeholder(str),
                encoder="embedded"
                if tiny
                else "gs://t5-data/pretrained_models/t5x/t5_1_1_xxl/checkpoint_1000000",
                tokenizer="embedded"
                if tiny
                else "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model",
            ),
        )
    )
    if tiny:
        demo_training(config)
    return config


def demo_training(config: ConfigDict) -> None:
    """Sets what suits small networks, small batches and short runs."""
    # Weights all noise levels alike: the frames' layout is decided where Eq. 2 weighs little.
    config.objective.loss = "v_mse"
    config.train.update(batch_size=16, ema_decay=0.999, checkpoint_every=250)
    # Muon takes fewer steps than Adam to the same loss. The rate falls to zero: a constant one
    # leaves the last steps' noise in the weights.
    config.train.optimizer.update(
        name="muon", learning_rate=1e-3, warmup_steps=200, schedule="linear", b2=0.99
    )


def captioned_shapes(*, seconds: float) -> dict:
    """The built-in dataset, drawn on demand."""
    return dict(
        kind="CaptionedShapes",
        seed=0,
        seconds=seconds,
        # Scenes of an epoch; as many as ever wanted. Fewer where their captions are to be cached.
        size=1_000_000_000,
        supersampling=2,
    )


def super_resolution(size: str) -> ConfigDict:
    """Returns the shared defaults of the six super-resolution stages at `size`."""
    defaults = config(size)
    defaults.stage.unet.update(
        attention_every_block=False,
        temporal="convolution",  # IV section 2.3
        low_res=True,
    )
    if size == "tiny":
        defaults.train.batch_size = 8  # a clip here has more pixels than the base's
        defaults.objective.loss = "r_mse"  # v_mse would weigh nearly clean z_t alone
        defaults.objective.max_augmentation = 0.2  # sampling takes t_aug of 0.01
        defaults.train.optimizer.update(learning_rate=2e-3, warmup_steps=100)
    return defaults


def constant(*, steps: int, weight: float, snr: float | None = None) -> ConfigDict:
    """Ancestral sampling at a constant guidance weight with static clipping (IV Fig. 14).

    Args:
      steps: sampler steps.
      weight: w of IV Eq. 5.
      snr: linear signal-to-noise ratio of the conditioning augmentation; None for the base model.
    """
    return ConfigDict(
        dict(
            num_steps=steps,
            # IV has no gamma; 0.3 is VDM's for text to video.
            stepper=dict(kind="Ancestral", gamma=0.3),
            guidance=dict(kind="ConstantGuidance", weight=weight),
            thresholding=dict(kind="StaticClip"),
            augmentation=None if snr is None else dict(snr=snr),
        )
    )


def demo_super_resolution(*, snr: float, steps: int = 4, weight: float = 0.0) -> ConfigDict:
    """Few DDIM steps, by default unguided, with little conditioning noise.

    Our choice, because small networks leave in the clip some of the noise that they are given.
    """
    config = constant(steps=steps, weight=weight, snr=snr)
    config.stepper = dict(kind="DDIM")
    return config


def oscillating(constant: ConfigDict) -> ConfigDict:
    """The same sampling with guidance alternating 15 and 1 and dynamic thresholding (IV 2.6.2)."""
    config = ConfigDict(constant.to_dict())
    config.guidance = dict(
        kind="OscillatingGuidance",
        high=15.0,
        low=1.0,
        constant_fraction=0.1,  # IV: "a certain number of initial sampling steps"
        constant_steps=config_dict.placeholder(int),
    )
    config.thresholding = dict(kind="DynamicThreshold", percentile=99.5)  # IM Fig. A.10
    return config


def unknown_size(size: str, known: tuple[str, ...]) -> ValueError:
    """The error of a config that has no such size."""
    return ValueError(f"size {size!r} is not one of {', '.join(known)}")
