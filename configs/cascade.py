"""The whole cascade (arXiv 2210.02303, Fig. 6): the stages of `configs/stages`, at one size.

    imagen-video sample --config configs/cascade.py:tiny --weights DIR --prompt TEXT --out DIR

Full size: 16x24x40 at 3 fps to 128x768x1280 at 24 fps, 11.6B parameters (not run: no full-size
weights exist). Tiny: 8x12x20 at 3 fps to 64x96x160 at 24 fps.
"""

from ml_collections import ConfigDict

from imagen_video_configs.stages import base, ssr1, ssr2, ssr3, tsr1, tsr2, tsr3


def get_config(size: str = "full") -> ConfigDict:
    """Returns the seven stages and the text model they read."""
    stages = (base, tsr1, ssr1, ssr2, tsr2, tsr3, ssr3)
    configs = {
        name: stage.get_config(size)
        for name, stage in zip(("base", "tsr1", "ssr1", "ssr2", "tsr2", "tsr3", "ssr3"), stages)
    }
    return ConfigDict(
        dict(
            stages={name: config.stage for name, config in configs.items()},
            text=configs["base"].text,
            text_encoder=dict(
                vocab_size=480, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_layers=2
            )
            if size == "tiny"
            # T5 v1.1 XXL: t5x/examples/t5/t5_1_1/xxl.gin
            else dict(
                vocab_size=32128,
                emb_dim=4096,
                num_heads=64,
                head_dim=64,
                mlp_dim=10240,
                num_layers=24,
                dtype="bfloat16",
            ),
        )
    )
