"""What a cascade is in numbers: shapes, parameters and FLOPs, found without any weights."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from imagen_video.array_types import Conditioning
from imagen_video.cascade.options import PUBLISHED_SR_STEPS, PUBLISHED_STEPS
from imagen_video.cascade.stage import Stage, denoise_fn, init_stage_params
from imagen_video.profiling.flops import count_flops
from imagen_video.text.t5_checkpoint import EMBEDDING
from imagen_video.text.t5_encoder import T5Config, param_shapes

DISTILLED_STEPS = 8
MEASURED_STAGES = 6  # arXiv 2210.02303, section 3.4 measures samples of 192x320: ssr3 is left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageDescription:
    """One row of the table.

    Attributes:
      name: of the stage.
      frames: of a clip.
      height: pixels.
      width: pixels.
      fps: frames a second.
      params: number of parameters.
      flops_per_eval: of one evaluation of one clip, without guidance: convolutions and dot
        products, 2 per multiply-add.
    """

    name: str
    frames: int
    height: int
    width: int
    fps: float
    params: int
    flops_per_eval: int


def count_params(tree: Any) -> int:
    """Returns the number of parameters of a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def describe_stage(stage: Stage) -> StageDescription:
    """Counts a stage's parameters and FLOPs from shapes alone."""
    params = jax.eval_shape(lambda: init_stage_params(stage, jax.random.key(0)))
    output = stage.output
    z_t = jax.ShapeDtypeStruct((1, output.frames, output.height, output.width, 3), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
    tokens = (1, stage.text_tokens)
    cond = Conditioning(
        text_emb=jax.ShapeDtypeStruct((*tokens, stage.unet.text_in_dim), jnp.float32),
        text_mask=jax.ShapeDtypeStruct(tokens, jnp.bool_),
        low_res=None if stage.input is None else z_t,
        low_res_logsnr=None if stage.input is None else logsnr,
        guidance_weight=logsnr if stage.unet.guidance_weight else None,
    )

    def evaluate(params, z_t, logsnr_t, cond):
        return denoise_fn(stage, params)(z_t, logsnr_t, cond)

    return StageDescription(
        name=stage.name,
        frames=output.frames,
        height=output.height,
        width=output.width,
        fps=stage.fps,
        params=count_params(params),
        flops_per_eval=count_flops(evaluate, params, z_t, logsnr, cond),
    )


def describe_cascade(stages: Sequence[Stage], text_encoder: T5Config) -> dict[str, Any]:
    """Returns the numbers of a cascade as JSON values: see `imagen-video describe --json`."""
    rows = [describe_stage(stage) for stage in stages]
    return {
        "stages": [dataclasses.asdict(row) for row in rows],
        "total_params": sum(row.params for row in rows),
        "text_encoder_params": count_text_encoder_params(text_encoder),
        "distillation_flops_ratio": distillation_flops_ratio(rows[:MEASURED_STAGES]),
        "distillation_flops_ratio_all": distillation_flops_ratio(rows),
    }


def count_text_encoder_params(config: T5Config) -> int:
    """Parameters but those of the embedding table, which the paper's "4.6B" leaves out, too.

    Each is multiplied once for a token: twice this number are its FLOPs, but for attention's own.
    """
    shapes = param_shapes(config)
    return sum(math.prod(shape) for path, shape in shapes.items() if path != EMBEDDING)


def distillation_flops_ratio(rows: Sequence[StageDescription]) -> float:
    """FLOPs of guided sampling at published steps, two evaluations each, over 8 unguided steps."""
    original = sum(
        2 * PUBLISHED_STEPS.get(row.name, PUBLISHED_SR_STEPS) * row.flops_per_eval for row in rows
    )
    return original / sum(DISTILLED_STEPS * row.flops_per_eval for row in rows)
