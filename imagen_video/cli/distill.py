"""Distils a trained stage into a student of few steps; a ladder that was stopped goes on exactly.

Guidance is folded into one network, then steps are halved until few remain. Every rung is trained,
checkpointed and measured against its teacher in a folder of its own under --workdir; one that
diverges ends the ladder with a message. `imagen-video export --workdir DIR` takes the last student.
"""

from typing import Any

from absl import flags

from imagen_video.cli import distributed
from imagen_video.config import CommandFlags, define_config, to_record, with_recipe
from imagen_video.files import any_path


def define(flag_values: CommandFlags) -> None:
    """Defines --config, --workdir, --slice and --distributed."""
    define_config(
        flag_values,
        required=True,
        help="configs/distill.py:STAGE[,SIZE[,oscillating|,range]]; --config.teacher=PATH names the"
        " stage's weights: a training work directory or a .safetensors file.",
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Where the rungs go, local or gs://.",
        flag_values=flag_values,
        required=True,
    )
    flags.DEFINE_string(
        "slice",
        None,
        "The TPU slice that distils, such as v5p:4x4x4: takes its recipe from configs/recipes.py,"
        " where there is one.",
        flag_values=flag_values,
    )
    distributed.define(flag_values)


def run(flag_values: CommandFlags) -> None:
    """Climbs the ladder and prints a line for every rung."""
    if not flag_values.workdir:  # As an unset variable of the shell is.
        raise ValueError("--workdir: the folder has an empty name")
    any_path(flag_values.workdir)  # raises if it is none
    distributed.join(flag_values, saves_when_stopped=True)
    from imagen_video.sharding.layout import layout_if_needed
    from imagen_video.sharding.processes import is_first
    from imagen_video.training.ladder import distill
    from imagen_video.training.run_text import load_run_text
    from imagen_video.training.rungs import DistillRun

    distill_run = to_record(DistillRun, with_recipe(flag_values, program="distill"))
    text = load_run_text(
        distill_run.text,
        num_tokens=distill_run.stage.text_tokens,
        layout=layout_if_needed(distill_run.sharding),
    )
    for result in distill(distill_run, text=text, workdir=flag_values.workdir):
        if is_first():
            print(_line(result), flush=True)


def _line(result: Any) -> str:
    line = (
        f"{result.name}: error {_number(result.error)}, {_number(result.error_before)} before"
        f" training; its clips differ from its teacher's by {_number(result.sample_difference)}"
        " (root mean square of -1 to 1)"
    )
    return f"{line}; {result.skipped} updates skipped" if result.skipped else line


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
