"""Says what the embedded demonstration knows, where a prompt asks for more."""

import sys
from collections.abc import Sequence

from imagen_video.data.captioned_shapes import grammar


def note_unknown_prompts(prompts: Sequence[str]) -> None:
    """Prints a note where a prompt is outside the grammar that the demo was trained on."""
    unknown = [prompt for prompt in prompts if not _known(prompt)]
    if unknown:
        print(
            f"note: the built-in demo was trained on captions such as 'a large red circle moving"
            f" left on a white background' alone; expect little of {unknown[0]!r}."
            f" Colours: {', '.join(grammar.COLOURS)}. Shapes: {', '.join(grammar.FORMS)}, letter A"
            f" to Z, word CAT. Motions: {', '.join(grammar.MOTIONS)}. Backgrounds:"
            f" {', '.join(grammar.BACKGROUNDS)}.",
            file=sys.stderr,
        )


def _known(prompt: str) -> bool:
    try:
        grammar.parse(prompt)
    except ValueError:
        return False
    return True
