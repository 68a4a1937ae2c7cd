"""The demo's tiny text encoder: two T5 v1.1 layers trained on captions by masked-token prediction.

It stands in for the paper's frozen T5-XXL (arXiv 2210.02303, section 2.2) where the demo must run
on a laptop; every value is our choice. Trained once, then frozen:

    imagen-video train --config configs/text_encoder.py --workdir DIR
    imagen-video export --workdir DIR --out imagen_video/assets/tiny

The files in the package: 2,500 steps, 3.2 minutes on two CPU cores (jax 0.10.2); masked-token loss
at the end 0.73 nats, averaged over the last 100 steps.
"""

from ml_collections import ConfigDict

from imagen_video_configs import base


def get_config() -> ConfigDict:
    """Returns the encoder, its objective, its data and its training run."""
    return ConfigDict(
        dict(
            encoder=dict(emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_layers=2),
            text_tokens=32,
            data=dict(
                source=base.captioned_shapes(seconds=64 / 24),
                vocab_size=480,
                tokenizer_captions=20_000,
                image_share=0.4,
            ),
            corruption=dict(rate=0.3, mask_share=0.8, random_share=0.1),
            train=dict(
                num_steps=2500,
                batch_size=64,
                seed=0,
                ema_decay=0.999,
                optimizer=dict(
                    name="adam",
                    learning_rate=3e-3,
                    warmup_steps=100,
                    schedule="cosine",
                ),
                log_every=100,
                checkpoint_every=1000,
            ),
        )
    )
