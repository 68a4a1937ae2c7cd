"""Compares a cascade with its students: time, FLOPs and quality, as in the paper's Table 1.

The originals are sampled in the published steps, or in those of their stages (--steps=default),
students in their own. Leaves the videos of every row and comparison.json in --out, and prints the
table. A rerun goes on where it stopped.
"""

from absl import flags

from imagen_video.config import CommandFlags, define_config
from imagen_video.files import local_path


def define(flag_values: CommandFlags) -> None:
    """Defines the rows, how much of each, and where the weights are."""
    fv = {"flag_values": flag_values}
    count = {"lower_bound": 1, "upper_bound": 100_000}
    flags.DEFINE_string("out", None, "Folder for the results.", required=True, **fv)
    flags.DEFINE_list(
        "rows",
        ["original", "sr", "all"],
        "Of original, sr (the super-resolution stages distilled), all, each also with _oscillating"
        " (on the base), and all_oscillating_sr (on tsr1 and ssr1, too).",
        **fv,
    )
    flags.DEFINE_integer("num_prompts", 50, "Held-out prompts of a run.", lower_bound=1, **fv)
    flags.DEFINE_integer("runs", 4, "Of each row, each with its own noise.", **count, **fv)
    flags.DEFINE_string("through", "tsr3", "Last stage that quality is read from.", **fv)
    flags.DEFINE_integer(
        "timing_rounds", 3, "Of one video with all stages; 0 for none.", lower_bound=0, **fv
    )
    flags.DEFINE_enum(
        "steps",
        "published",
        ["published", "default"],
        "Of the originals: the paper's, or those that each stage is sampled in by default.",
        **fv,
    )
    flags.DEFINE_integer("batch_size", 4, "Videos sampled at a time.", **fv)
    flags.DEFINE_string("weights", None, "Folder with STAGE.safetensors and 'distilled'.", **fv)
    define_config(flag_values, help="configs/cascade.py:SIZE; by default what the weights say.")


def run(flag_values: CommandFlags) -> None:
    """Samples, reads, times, prints the table."""
    from imagen_video.cli.compilation_cache import use_compilation_cache
    from imagen_video.cli.progress_bars import ProgressBars
    from imagen_video.evaluation.comparison import ComparisonJob, Row, run_comparison
    from imagen_video.evaluation.comparison_table import comparison_table
    from imagen_video.loading import load_cascade
    from imagen_video.profiling.description import describe_stage

    out = local_path(flag_values.out)
    job = ComparisonJob(
        rows=tuple(flag_values.rows),
        num_prompts=flag_values.num_prompts,
        runs=flag_values.runs,
        through=flag_values.through,
        timing_rounds=flag_values.timing_rounds,
        steps=None if flag_values.steps == "default" else flag_values.steps,
    )
    use_compilation_cache()
    cascade = load_cascade(flag_values.config, weights=flag_values.weights)

    def load(row: Row):
        return cascade.with_students(row.distilled, guidance=row.guidance)

    with ProgressBars() as bars:
        rows = run_comparison(
            load,
            job,
            out,
            flops_per_eval=lambda stage: describe_stage(stage).flops_per_eval,
            batch_size=flag_values.batch_size,
            progress=bars,
        )
    print(comparison_table(rows))
