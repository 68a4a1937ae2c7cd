"""Samples held-out prompts and reads the videos back: how often is each attribute right?

Says, too, how far their measurements are from those of the dataset's own videos. Leaves the videos,
agreement.json and sheets.png, the first twenty videos in one picture, in --out.
With --from_truth judges each super-resolution stage alone, from the dataset's own clips brought
down to its input grid: PSNR beside that of plain resizing. Leaves restoration.json in --out.
A rerun goes on where it stopped.
"""

from absl import flags

from imagen_video.cli.sampling_flags import define_sampling_flags, make_options
from imagen_video.config import CommandFlags
from imagen_video.files import local_path


def define(flag_values: CommandFlags) -> None:
    """Defines what to sample, and the sampling flags."""
    fv = {"flag_values": flag_values}
    count = {"lower_bound": 1, "upper_bound": 100_000}
    flags.DEFINE_string("out", None, "Folder for the results.", required=True, **fv)
    flags.DEFINE_string("through", None, "Stop after this stage and read its clips.", **fv)
    flags.DEFINE_integer("num_prompts", 200, "Held-out prompts of one object.", lower_bound=1, **fv)
    flags.DEFINE_integer("num_samples", 2, "Videos of each prompt.", **count, **fv)
    flags.DEFINE_integer("seed", 0, "Of the noise.", **fv)
    flags.DEFINE_bool("from_truth", False, "Give each stage the dataset's own clips.", **fv)
    define_sampling_flags(flag_values)


def run(flag_values: CommandFlags) -> None:
    """Samples, judges, prints the table."""
    from imagen_video.cli.compilation_cache import use_compilation_cache
    from imagen_video.cli.progress_bars import ProgressBars
    from imagen_video.evaluation.job import EvaluationJob
    from imagen_video.loading import load_cascade

    out = local_path(flag_values.out)
    use_compilation_cache()
    job = EvaluationJob(
        num_prompts=flag_values.num_prompts,
        num_samples=flag_values.num_samples,
        seed=flag_values.seed,
        through=flag_values.through,
        options=make_options(flag_values),
    )
    cascade = load_cascade(
        flag_values.config,
        weights=flag_values.weights,
        through=flag_values.through,
        distilled=flag_values.distilled,
        guidance=flag_values.guidance,
    )
    judge = _restoration if flag_values.from_truth else _agreement
    with ProgressBars() as bars:
        text = judge(cascade, job, out, batch_size=flag_values.batch_size, progress=bars)
    print(text)


def _agreement(*args, **kwargs) -> str:
    from imagen_video.evaluation import agreement

    return agreement.table(agreement.run_agreement(*args, **kwargs))


def _restoration(*args, **kwargs) -> str:
    from imagen_video.evaluation import restoration

    return restoration.table(restoration.run_restoration(*args, **kwargs))
