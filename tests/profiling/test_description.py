"""What a cascade is in numbers."""

import dataclasses

import jax
import numpy as np
import pytest
from micro_cascade import BASE, SSR1, STAGES, TSR1, drawn_params

from imagen_video.cascade.stage import STAGE_NAMES, Grid
from imagen_video.profiling.description import (
    StageDescription,
    count_params,
    describe_cascade,
    describe_stage,
    distillation_flops_ratio,
)
from imagen_video.text.t5_encoder import T5Config


def row(name, flops):
    return StageDescription(
        name=name, frames=1, height=1, width=1, fps=1.0, params=1, flops_per_eval=flops
    )


def seven_stages(*, base, others):
    """Rows whose base has base : others of the FLOPs of the six stages after it, all unlike."""
    shares = dict(zip(STAGE_NAMES[1:], range(1, 7)))
    return [
        row("base", base * sum(shares.values())),
        *(row(name, others * share) for name, share in shares.items()),
    ]


def test_a_row_has_the_stages_grid_and_its_parameters():
    found = describe_stage(TSR1)
    assert (found.frames, found.height, found.width, found.fps) == (8, 4, 8, 6.0)
    counted = sum(np.asarray(leaf).size for leaf in jax.tree.leaves(drawn_params(TSR1)))
    assert found.params == counted == count_params(drawn_params(TSR1)) > 0


def test_a_network_that_reads_the_weight_is_counted_too():
    reads_w = dataclasses.replace(SSR1, unet=dataclasses.replace(SSR1.unet, guidance_weight=True))
    found, plain = describe_stage(reads_w), describe_stage(SSR1)
    assert found.params > plain.params
    assert plain.flops_per_eval < found.flops_per_eval < 1.02 * plain.flops_per_eval


def test_a_convolutional_stage_grows_with_its_pixels():
    unet = dataclasses.replace(SSR1.unet, attention=("none",))
    small = dataclasses.replace(SSR1, unet=unet)
    grids = {"input": Grid(frames=8, height=8, width=16)}
    large = dataclasses.replace(small, output=Grid(frames=8, height=16, width=32), **grids)
    small, large = describe_stage(small), describe_stage(large)
    assert small.params == large.params
    # All but the embeddings of noise level and caption.
    assert 3.5 < large.flops_per_eval / small.flops_per_eval < 4


def test_the_cascade_sums_its_stages():
    encoder = T5Config(vocab_size=50, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_layers=3)
    found = describe_cascade(STAGES, encoder)
    assert [r["name"] for r in found["stages"]] == ["base", "tsr1", "ssr1"]
    assert found["total_params"] == sum(describe_stage(stage).params for stage in STAGES)
    # Per layer: four attention matrices, two gates and one way back, two norms; once: relative
    # positions and the last norm. No embedding table.
    layer = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8
    assert found["text_encoder_params"] == 3 * layer + 32 * 2 + 8


@pytest.mark.parametrize(
    ("rows", "ratio"),
    [
        # Two evaluations a step when guided, one when distilled.
        ([row("base", 5)], 2 * 256 / 8),
        ([row("ssr1", 7)], 2 * 128 / 8),
        ([row("base", 1), row("tsr1", 3)], 2 * (256 + 3 * 128) / (8 * 4)),
        # 32 + 32 b at a base's share b: the paper's 36, with its rounding, is that of b = 1/8.
        (seven_stages(base=1, others=7), 36),
        (seven_stages(base=7, others=57), 35.5),
        (seven_stages(base=9, others=55), 36.5),
    ],
)
def test_distillation_saves_steps_and_guidance(rows, ratio):
    assert distillation_flops_ratio(rows) == pytest.approx(ratio)


def test_the_last_stage_is_left_out_of_the_papers_ratio():
    found = describe_cascade(
        [BASE],
        T5Config(vocab_size=50, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_layers=1),
    )
    assert found["distillation_flops_ratio"] == found["distillation_flops_ratio_all"] == 64
