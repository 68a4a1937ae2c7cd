"""Samples videos from prompts, through all seven stages; resumable in the middle of a stage.

Leaves NAME.mp4 and a contact sheet NAME.png for every sample, and manifest.json, in --out. Without
--config and --weights it samples the small demonstration cascade inside this package.
With --distributed the processes of a job share every clip; the first one writes --out.
"""

from absl import flags

from imagen_video.cli import distributed, prompt_flags
from imagen_video.cli.sampling_flags import define_sampling_flags, make_options
from imagen_video.config import CommandFlags
from imagen_video.files import any_path


def define(flag_values: CommandFlags) -> None:
    """Defines the prompts, the weights, how to sample, and on what."""
    fv = {"flag_values": flag_values}
    prompt_flags.define(flag_values)
    flags.DEFINE_string("out", None, "Folder for the results, local or gs://.", required=True, **fv)
    flags.DEFINE_string("through", None, "Stop after this stage.", **fv)
    flags.DEFINE_integer("seed", 0, "Sample k of every prompt has the noise of (seed, k).", **fv)
    flags.DEFINE_integer("num_samples", 1, "Samples of each prompt.", **fv)
    flags.DEFINE_bool("save_stages", False, "Keep each stage's clip as NAME.STAGE.mp4.", **fv)
    flags.DEFINE_bool("offload_text", False, "Free the text encoder before the first stage.", **fv)
    flags.DEFINE_integer("save_every", 16, "Sampler steps between savings of the state.", **fv)
    flags.DEFINE_string(
        "slice",
        None,
        "The TPU slice that samples, such as v5e:4x4: takes the stages' recipes from"
        " configs/recipes.py, where there are some.",
        **fv,
    )
    define_sampling_flags(flag_values)
    distributed.define(flag_values)


def run(flag_values: CommandFlags) -> None:
    """Samples and writes the folder."""
    out, prompts = any_path(flag_values.out), prompt_flags.prompts(flag_values)
    distributed.join(flag_values)
    # Imported once the flags are known to be right: jax takes seconds.
    from imagen_video.cascade.sampling_run import SampleRequest, run_request
    from imagen_video.cli.compilation_cache import use_compilation_cache
    from imagen_video.cli.demo_note import note_unknown_prompts
    from imagen_video.cli.progress_bars import ProgressBars
    from imagen_video.cli.recipe_shardings import recipe_shardings
    from imagen_video.loading import load_cascade
    from imagen_video.sharding.processes import is_first

    use_compilation_cache()
    request = SampleRequest(
        prompts=prompts,
        seed=flag_values.seed,
        num_samples=flag_values.num_samples,
        through=flag_values.through,
        options=make_options(flag_values),
    )
    cascade = load_cascade(
        flag_values.config,
        weights=flag_values.weights,
        through=flag_values.through,
        sharding=recipe_shardings(flag_values.slice),
        distilled=flag_values.distilled,
        guidance=flag_values.guidance,
    )
    demo_prompts = prompts if flag_values.weights is None else ()
    with ProgressBars(opening=lambda: note_unknown_prompts(demo_prompts)) as bars:
        manifest = run_request(
            cascade,
            request,
            out,
            batch_size=flag_values.batch_size,
            save_every=flag_values.save_every,
            save_stages=flag_values.save_stages,
            offload_text=flag_values.offload_text,
            progress=bars if is_first() else None,
        )
    for sample in manifest["samples"] if is_first() else ():
        print(out / sample["video"])
