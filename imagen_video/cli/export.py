"""Exports a training run: EMA weights to one .safetensors file a stage, ready to sample from.

--workdir is that of `imagen-video train`, or of `distill`, whose last student is exported. A text
encoder's run leaves text_encoder.safetensors and tokenizer.model.
"""

import pathlib

from absl import flags

from imagen_video.config import CommandFlags


def define(flag_values: CommandFlags) -> None:
    """Defines --workdir, --out and --dtype."""
    fv = {"flag_values": flag_values}
    flags.DEFINE_string("workdir", None, "Work directory of a training run.", required=True, **fv)
    flags.DEFINE_string("out", None, "Folder for the file.", required=True, **fv)
    flags.DEFINE_enum(
        "dtype", "bfloat16", ["float32", "bfloat16", "float16"], "Of the stored tensors.", **fv
    )


def run(flag_values: CommandFlags) -> None:
    """Writes the file and prints its path."""
    from imagen_video.training.export import export_run

    out = pathlib.Path(flag_values.out)
    for path in export_run(flag_values.workdir, out, dtype=flag_values.dtype):
        print(path)
