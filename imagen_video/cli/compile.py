"""Compiles a program for a TPU slice with the real compiler; no TPU is needed.

Says whether it fits the chips' memory, what it computes and sends, and how long the compiler
expects it to take. Exit code 1 if it does not fit.
"""

import dataclasses
import importlib.metadata
import json
import os

from absl import flags

from imagen_video.config import CommandFlags, define_config, to_record, with_recipe
from imagen_video.files import local_path

_CHILD = "IMAGEN_VIDEO_COMPILE_CHILD"


def define(flag_values: CommandFlags) -> None:
    """Defines --config, --slice, --program, --clips, --ceiling, --hlo and --json."""
    fv = {"flag_values": flag_values}
    define_config(flag_values, required=True, help="The stage: configs/stages/NAME.py[:SIZE].")
    flags.DEFINE_string("slice", None, "Such as v5p:4x4x4 or v5e:2x4.", required=True, **fv)
    flags.DEFINE_enum(
        "program",
        None,
        ["train", "sample", "encode", "guide", "halve"],
        "A training step, one guided evaluation and sampler step, T5-XXL on the captions, or a step"
        " of either stage of distillation (configs/distill.py). Steps read cached embeddings.",
        required=True,
        **fv,
    )
    flags.DEFINE_integer(
        "clips", 1, "Clips sampled, or captions encoded, at a time.", lower_bound=1, **fv
    )
    flags.DEFINE_bool(
        "ceiling",
        False,
        "Compile every convolution alone, too: the share of peak if all else took no time.",
        **fv,
    )
    flags.DEFINE_string("hlo", None, "File for the compiled program's text.", **fv)
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.", **fv)


def run(flag_values: CommandFlags) -> int:
    """Prints what the compiler says."""
    from imagen_video.profiling import aot
    from imagen_video.profiling.programs import make_program
    from imagen_video.profiling.reports import report_lines
    from imagen_video.profiling.rung_program import RUNG_PROGRAMS, rung_program
    from imagen_video.profiling.slices import Slice
    from imagen_video.training.rungs import DistillRun
    from imagen_video.training.stage_run import StageRun

    if flag_values.hlo is not None and not local_path(flag_values.hlo).parent.is_dir():
        raise ValueError(f"--hlo: {flag_values.hlo} would lie in a folder that does not exist")
    if os.environ.get(_CHILD) != "1":
        # A process of its own: the compiler must be set up before JAX starts, and may abort.
        return aot.run_compiler(flag_values.argv, {_CHILD: "1"})

    where = Slice.parse(flag_values.slice)
    kind, clips = flag_values.program, flag_values.clips
    config = with_recipe(flag_values, program=kind)
    run = to_record(DistillRun if kind in RUNG_PROGRAMS else StageRun, config)
    layout = aot.slice_layout(where, run.sharding)
    if kind in RUNG_PROGRAMS:
        program, rows = rung_program(run, kind, layout)
    else:
        program = make_program(kind, run, layout, clips=clips)
        rows = run.train.batch_size if kind == "train" else clips
    report = aot.compile_program(
        program, layout, where, ceiling=flag_values.ceiling, text_file=flag_values.hlo
    )
    found = {"stage": run.stage.name, "program": kind, "slice": str(where), "rows": rows}
    found |= {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    found |= dataclasses.asdict(report)
    print(json.dumps(found, indent=2) if flag_values.json else report_lines(found))
    return 0 if report.fits else 1
