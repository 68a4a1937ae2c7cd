"""The flags that `sample` and `evaluate` share: which weights, and how to sample."""

from absl import flags

from imagen_video.config import CommandFlags, define_config


def define_sampling_flags(flag_values: CommandFlags) -> None:
    """Defines them."""
    fv = {"flag_values": flag_values}
    define_config(
        flag_values,
        help="configs/cascade.py:SIZE; by default each weights file says what its stage is.",
    )
    flags.DEFINE_string(
        "weights",
        None,
        "Folder with STAGE.safetensors, or a training work directory a stage.",
        **fv,
    )
    flags.DEFINE_string(
        "guidance",
        "constant",
        "constant, or oscillating, which applies to base, tsr1 and ssr1, or oscillating:STAGES.",
        **fv,
    )
    flags.DEFINE_enum(
        "thresholding",
        None,
        ["static", "dynamic"],
        "By default static with constant guidance, dynamic with oscillating.",
        **fv,
    )
    flags.DEFINE_string(
        "steps", None, "'published' (256 base, 128 others) or a number for all stages.", **fv
    )
    flags.DEFINE_flag(
        flags.Flag(
            _StageChoiceParser(),
            flags.ArgumentSerializer(),
            "distilled",
            "none",
            "Take students, in the weights' folder 'distilled': few steps, one evaluation each. Of"
            " all stages, or =sr (all but base), =none, or =STAGES with commas.",
            boolean=True,
        ),
        **fv,
    )
    flags.DEFINE_integer("batch_size", 4, "Videos sampled at a time.", **fv)


class _StageChoiceParser(flags.ArgumentParser):
    """--distilled alone is all stages, --nodistilled none; =true and =false are the same."""

    def parse(self, argument: str) -> str:
        words = {"true": "all", "t": "all", "1": "all", "false": "none", "f": "none", "0": "none"}
        return words.get(str(argument).lower(), argument)


def make_options(flag_values: CommandFlags):
    """Returns the `SamplingOptions` that the flags describe.

    Raises:
      ValueError: --steps is neither 'published' nor a number from 1, or --guidance is none.
    """
    from imagen_video.cascade.options import SamplingOptions

    steps = flag_values.steps
    if steps is not None and steps != "published":
        try:
            steps = int(steps)
        except ValueError:
            raise ValueError(f"--steps: {steps!r} is not 'published' or a number") from None
    return SamplingOptions(
        guidance=flag_values.guidance, thresholding=flag_values.thresholding, steps=steps
    )
