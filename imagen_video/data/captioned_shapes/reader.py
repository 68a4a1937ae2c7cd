"""Reads a clip back into the words of its caption, with no learned weights.

The reader is told nothing but the pixels. What it cannot tell it calls "unsure", which counts as
wrong. It is made for clips of one object without a style; any size and number of frames will do.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from imagen_video.data.captioned_shapes.alignment import turn_gains
from imagen_video.data.captioned_shapes.fit import best_turn, course, motion_of
from imagen_video.data.captioned_shapes.grammar import Caption, parse
from imagen_video.data.captioned_shapes.matching import Match, Matcher
from imagen_video.data.captioned_shapes.observation import (
    SIDE,
    UNSURE,
    Observation,
    border_background,
    observe,
)
from imagen_video.data.captioned_shapes.scene import DIAMETER
from imagen_video.data.captioned_shapes.spelling import spellings
from imagen_video.data.captioned_shapes.templates import (
    YAWS,
    flat_templates,
    shaded_templates,
    template,
)

ATTRIBUTES = ("background", "colour", "shape", "size", "motion")
_MIN_LIKENESS = 0.8  # cosine with the best candidate, below which it is none of them
_MIN_LEAD = 0.001  # of the best candidate over the next
# At 96x160, blurred or not, words were at most 0.80 like any single shape and shapes at least 0.95
# like themselves.
_WORDS_BELOW = 0.92
_SIZE_MARGIN = 1.4  # how far, as a ratio, a diameter may be from the nearest size word's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What a clip shows, each attribute a word of the grammar or "unsure".

    Attributes:
      background, colour, shape, size: as in the caption; size "normal" is the unsaid one.
      motion: a MOTION; None for a still image.
      measurements: the numbers behind the words, empty if no object was found: "colour_lead" (how
        much worse the second colour fits), "likeness" and "second_likeness" (cosines with the two
        best candidates), "diameter" (at half time), "x" and "y" (mean centroid), lengths in
        shorter sides of the canvas; for clips also the fields of `fit.Course`.
    """

    background: str
    colour: str
    shape: str
    size: str
    motion: str | None
    measurements: Mapping[str, float]


def read(video: UInt8[np.ndarray, "f h w 3"]) -> Reading:
    """Reads a whole clip, or a still image (f = 1), uint8 sRGB."""
    is_image = len(video) == 1
    seen = observe(video)
    if seen is None:
        return Reading(
            background=border_background(video),
            colour=UNSURE,
            shape=UNSURE,
            size=UNSURE,
            motion=None if is_image else UNSURE,
            measurements={},
        )
    gains = None if is_image else turn_gains(seen)
    turn = 0.0 if is_image else best_turn(gains)
    matches = candidates(seen, turn)
    best = matches[0]
    measurements = {
        "colour_lead": seen.colour_lead,
        "likeness": best.score,
        "second_likeness": matches[1].score,
        "x": float(seen.x[seen.seen].mean()) / SIDE,
        "y": float(seen.y[seen.seen].mean()) / SIDE,
    }
    middle_mass, motion = float(seen.mass[0]), None
    if not is_image:
        path = course(seen, turn=best.turn)
        middle_mass = path.middle_mass
        motion = motion_of(path, width=seen.width / SIDE, height=seen.height / SIDE)
        measurements |= dataclasses.asdict(path)
    diameter = 2 * best.radius * math.sqrt(middle_mass) / SIDE
    measurements["diameter"] = diameter
    sure = best.score >= _MIN_LIKENESS and best.score - matches[1].score >= _MIN_LEAD
    return Reading(
        background=seen.background,
        colour=seen.colour,
        shape=best.shape if sure else UNSURE,
        size=_size(diameter),
        motion=motion,
        measurements=measurements,
    )


def candidates(seen: Observation, turn: float) -> list[Match]:
    """Compares an object with every shape there is and the likeliest words, best first.

    Args:
      seen: the clip.
      turn: degrees that its frames turn on the screen, 0 for a cube.
    """
    matcher = Matcher(seen, turn)
    shaded = shaded_templates(tuple(seen.background_rgb), tuple(seen.colour_rgb))
    cubes, wheels = shaded[: len(YAWS)], shaded[len(YAWS) :]
    upright = [*flat_templates(), *(wheels if turn else ())]
    matches = [*matcher.upright(upright), matcher.cube(cubes)]
    if max(match.score for match in matches) < _WORDS_BELOW:
        words = [template(f"word {word}") for word in spellings(matcher.coverage)]
        matches += matcher.upright(words) if words else []
    best_of_shape: dict[str, Match] = {}
    for match in sorted(matches, key=lambda match: match.score):
        best_of_shape[match.shape] = match
    return sorted(best_of_shape.values(), key=lambda match: match.score, reverse=True)


def score(reading: Reading, caption: str | Caption) -> dict[str, bool]:
    """Tells for each of ATTRIBUTES whether it was read as the caption of one object says.

    Raises:
      ValueError: not a caption of the dataset, or one of two objects.
    """
    caption = parse(caption) if isinstance(caption, str) else caption
    if len(caption.objects) != 1:
        raise ValueError(f"caption: {caption.text!r} has two objects, a reading has one")
    phrase = caption.objects[0]
    return {
        "background": reading.background == caption.background,
        "colour": reading.colour == phrase.colour,
        "shape": reading.shape == phrase.shape,
        "size": reading.size == phrase.size,
        "motion": reading.motion == phrase.motion,
    }


def _size(diameter: float) -> str:
    ratio = {size: abs(math.log(diameter / DIAMETER[size])) for size in DIAMETER}
    nearest = min(ratio, key=ratio.get)
    return nearest if ratio[nearest] < math.log(_SIZE_MARGIN) else UNSURE
