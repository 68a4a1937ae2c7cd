"""Prints the stages of a cascade: shapes, frame rates, parameters, FLOPs of one evaluation.

Nothing is loaded or run: the numbers come from the shapes of the configuration.
"""

import json

from absl import flags

from imagen_video.config import CommandFlags, load_config, to_record


def define(flag_values: CommandFlags) -> None:
    """Defines --size and --json."""
    fv = {"flag_values": flag_values}
    flags.DEFINE_enum("size", "full", ["full", "tiny"], "Size of configs/cascade.py.", **fv)
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.", **fv)


def run(flag_values: CommandFlags) -> None:
    """Prints the table, or the same numbers as JSON."""
    from imagen_video.cascade.stage import STAGE_NAMES, Stage
    from imagen_video.profiling.description import describe_cascade
    from imagen_video.text.t5_encoder import T5Config

    config = load_config(f"configs/cascade.py:{flag_values.size}")
    stages = [to_record(Stage, config.stages[name], where=f"stages.{name}") for name in STAGE_NAMES]
    text_encoder = to_record(T5Config, config.text_encoder, where="text_encoder")
    description = describe_cascade(stages, text_encoder)
    print(json.dumps(description, indent=2) if flag_values.json else _table(description))


def _table(description: dict) -> str:
    lines = [f"{'stage':<6} {'frames x h x w':>14} {'fps':>4} {'params':>9} {'TFLOP/eval':>11}"]
    for row in description["stages"]:
        shape = f"{row['frames']}x{row['height']}x{row['width']}"
        lines.append(
            f"{row['name']:<6} {shape:>14} {row['fps']:>4g} {_count(row['params']):>9}"
            f" {row['flops_per_eval'] / 1e12:>11.4g}"
        )
    lines += [
        f"{'total':<6} {'':>14} {'':>4} {_count(description['total_params']):>9}",
        f"text encoder without its embedding table: {_count(description['text_encoder_params'])}",
        "FLOPs of guided sampling at published steps over 8 distilled steps:"
        f" {description['distillation_flops_ratio']:.1f} (first six stages),"
        f" {description['distillation_flops_ratio_all']:.1f} (all)",
    ]
    return "\n".join(lines)


def _count(number: int) -> str:
    return f"{number / 1e9:.3f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"
