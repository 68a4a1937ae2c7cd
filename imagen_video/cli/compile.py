"""Compiles a stage's program for a TPU slice with the real compiler; no TPU is needed.

Exit code 1 if the program does not fit into the chips' memory.
"""

import dataclasses
import json
import os
import subprocess
import sys

from absl import flags

from imagen_video.config import CommandFlags, define_config, to_record, with_recipe

_CHILD = "IMAGEN_VIDEO_COMPILE_CHILD"


def define(flag_values: CommandFlags) -> None:
    """Defines --config, --slice, --program, --clips and --json."""
    fv = {"flag_values": flag_values}
    define_config(flag_values, required=True, help="The stage: configs/stages/NAME.py[:SIZE].")
    flags.DEFINE_string("slice", None, "Such as v5p:4x4x4 or v5e:2x4.", required=True, **fv)
    flags.DEFINE_enum("program", None, ["train", "sample"], "Which.", required=True, **fv)
    flags.DEFINE_integer("clips", 1, "Clips sampled at a time.", lower_bound=1, **fv)
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.", **fv)


def run(flag_values: CommandFlags) -> int:
    """Prints what the compiler says."""
    from imagen_video.profiling import aot, programs
    from imagen_video.profiling.slices import Slice
    from imagen_video.training.stage_run import StageRun

    if os.environ.get(_CHILD) != "1":
        # A process of its own: the compiler must be set up before JAX starts, and may abort.
        command = [sys.executable, "-m", "imagen_video", *flag_values.argv]
        return subprocess.run(command, env=aot.environment() | {_CHILD: "1"}).returncode

    where = Slice.parse(flag_values.slice)
    config = with_recipe(flag_values, program=flag_values.program)
    stage_run = to_record(StageRun, config)
    layout = aot.slice_layout(where, stage_run.sharding)
    if flag_values.program == "train":
        lower = lambda: programs.lower_training(stage_run, layout)  # noqa: E731
    else:
        lower = lambda: programs.lower_sampling(  # noqa: E731
            stage_run.stage, layout, clips=flag_values.clips
        )
    report = aot.compile_program(lower, where)
    found = {"stage": stage_run.stage.name, "program": flag_values.program, "slice": str(where)}
    found |= dataclasses.asdict(report)
    print(json.dumps(found, indent=2) if flag_values.json else _table(found))
    return 0 if report.fits else 1


def _table(found: dict) -> str:
    verdict = "fits" if found["fits"] else "does not fit"
    lines = [f"{found['stage']} {found['program']} on {found['slice']}: {verdict}"]
    for name in ("hbm_gib", "arguments_gib", "temporaries_gib", "compile_seconds"):
        if found[name] is not None:
            lines.append(f"  {name.replace('_', ' '):<16} {found[name]:>9.3f}")
    return "\n".join(lines)
