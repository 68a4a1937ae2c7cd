"""Exports a training run: EMA weights to one .safetensors file a stage, ready to sample from.

--workdir is that of `imagen-video train`, or of `distill`, whose last student is exported. A text
encoder's run leaves text_encoder.safetensors and tokenizer.model. With --config, the file takes
from it how the stage is sampled.
"""

from absl import flags

from imagen_video.config import CommandFlags, define_config, stage_of, to_record
from imagen_video.files import any_path


def define(flag_values: CommandFlags) -> None:
    """Defines --workdir, --out and --dtype."""
    fv = {"flag_values": flag_values}
    flags.DEFINE_string("workdir", None, "Work directory of a training run.", required=True, **fv)
    flags.DEFINE_string("out", None, "Folder for the file, or gs://.", required=True, **fv)
    flags.DEFINE_enum(
        "dtype", "bfloat16", ["float32", "bfloat16", "float16"], "Of the stored tensors.", **fv
    )
    define_config(
        flag_values,
        help="configs/stages/NAME.py[:SIZE]: how the stage is sampled; by default as the run says.",
    )


def run(flag_values: CommandFlags) -> None:
    """Writes the file and prints its path."""
    from imagen_video.cascade.stage import Stage
    from imagen_video.training.export import export_run

    out, config = any_path(flag_values.out), flag_values.config
    if out.suffix == ".safetensors" and not out.is_dir():
        raise ValueError(f"out: {out} must be a folder; what is written there is STAGE.safetensors")
    stage = None if config is None else to_record(Stage, stage_of(config), where="stage")
    workdir = str(any_path(flag_values.workdir))
    for path in export_run(workdir, out, dtype=flag_values.dtype, sampled_as=stage):
        print(path)
