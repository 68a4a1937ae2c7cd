"""Lists the recipes for TPU slices, or makes the table of what the compiler says of them."""

from absl import flags

from imagen_video.config import CommandFlags, load_recipes


def define(flag_values: CommandFlags) -> None:
    """Defines --reports."""
    flags.DEFINE_string(
        "reports",
        None,
        "Folder of JSON reports of imagen-video compile: print them as a Markdown table instead.",
        flag_values=flag_values,
    )


def run(flag_values: CommandFlags) -> None:
    """Prints a line a recipe: stage, program, slice; or the table."""
    from imagen_video.profiling.reports import report_table

    if flag_values.reports is not None:
        print(report_table(flag_values.reports))
        return
    for stage, program, where in load_recipes().all_recipes():
        print(stage, program, where)
