"""The flags that say what a video shows."""

from absl import flags

from imagen_video.config import CommandFlags
from imagen_video.data.captions import read_lines


def define(flag_values: CommandFlags) -> None:
    """Defines --prompt and --prompts."""
    fv = {"flag_values": flag_values}
    flags.DEFINE_multi_string("prompt", [], "What the video shows; may be given again.", **fv)
    flags.DEFINE_string("prompts", None, "A text file with one prompt a line.", **fv)


def prompts(flag_values: CommandFlags) -> tuple[str, ...]:
    """Returns all prompts, those of the file last.

    Raises:
      ValueError: there are none.
      OSError: the file cannot be read.
    """
    found = list(flag_values.prompt)
    if flag_values.prompts is not None:
        found += [line.strip() for line in read_lines(flag_values.prompts)]
    if not found:
        raise ValueError("no prompts: give --prompt TEXT, or --prompts FILE with one a line")
    return tuple(found)
