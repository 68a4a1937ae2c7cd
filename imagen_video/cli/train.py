"""Trains one stage, or the demo's text encoder; a run that was stopped goes on exactly."""

from absl import flags

from imagen_video.cli import distributed
from imagen_video.config import CommandFlags, define_config, to_record, with_recipe
from imagen_video.files import any_path


def define(flag_values: CommandFlags) -> None:
    """Defines --config, --workdir, --slice and --distributed."""
    define_config(
        flag_values,
        required=True,
        help="What to train: configs/stages/NAME.py[:SIZE] or configs/text_encoder.py.",
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Where checkpoints, metrics, TensorBoard events and pictures go, local or gs://.",
        flag_values=flag_values,
        required=True,
    )
    flags.DEFINE_string(
        "slice",
        None,
        "The TPU slice that trains, such as v5p:4x4x4: takes its recipe from configs/recipes.py,"
        " where there is one.",
        flag_values=flag_values,
    )
    distributed.define(flag_values)


def run(flag_values: CommandFlags) -> None:
    """Trains to the end of the run."""
    if not flag_values.workdir:  # As an unset variable of the shell is.
        raise ValueError("--workdir: the folder has an empty name")
    any_path(flag_values.workdir)  # raises if it is none
    distributed.join(flag_values, saves_when_stopped=True)
    from imagen_video.sharding.layout import layout_if_needed
    from imagen_video.training.run_text import load_run_text
    from imagen_video.training.stage_run import StageRun, train_stage
    from imagen_video.training.text_run import TextRun, train_text

    config, workdir = flag_values.config, flag_values.workdir
    if "stage" in config:
        config = with_recipe(flag_values, program="train")
        stage_run = to_record(StageRun, config)
        text = load_run_text(
            stage_run.text,
            num_tokens=stage_run.stage.text_tokens,
            layout=layout_if_needed(stage_run.sharding),
        )
        train_stage(stage_run, text=text, workdir=workdir)
    else:
        import jax

        if flag_values.slice or jax.process_count() > 1:
            raise ValueError(
                "the text encoder trains in one process, and has no recipe for a slice"
            )
        train_text(to_record(TextRun, config), workdir=workdir)
