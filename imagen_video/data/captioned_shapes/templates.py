"""The dataset's own drawings, brought to the place and size of aligned patches, to compare with.

A template is coverage and light (see `paint`), blurred by several amounts because the blur of a
clip is not known. Its size comes from mass: a candidate is compared at the one size at which it
would have the mass that was measured.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from imagen_video.data.captioned_shapes import paint
from imagen_video.data.captioned_shapes.alignment import HALF_PATCH, PATCH
from imagen_video.data.captioned_shapes.grammar import FORMS, LETTERS, Phrase
from imagen_video.data.captioned_shapes.motion import Poses, reach

BLURS = (0.5, 1.2, 2.2, 3.6)  # standard deviations, patch pixels; a unit has 20
YAW_STEP = 3.75  # degrees; a cube looks the same after 90
YAWS = np.arange(0, 90, YAW_STEP)
_FINE = 2  # samples per patch pixel and side
_RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """One candidate, one unit of mass, centroid in the middle.

    Attributes:
      shape: SHAPE of the grammar.
      radius: of the object, in units.
      coverage, light: for each of BLURS.
    """

    shape: str
    radius: float
    coverage: Float[np.ndarray, "blurs h w"]
    light: Float[np.ndarray, "blurs h w"]


def flat_templates() -> list[Template]:
    """Upright forms and letters of one even colour; all but the cube."""
    return [template(shape) for shape in (*FORMS, *LETTERS) if shape != "cube"]


@functools.lru_cache(maxsize=64)
def shaded_templates(background: _RGB, colour: _RGB) -> tuple[Template, ...]:
    """Cubes at all YAWS, then the two-coloured circle and ring of spinning scenes.

    Their mass depends on how far the darker parts are from the background: hence the arguments.
    """
    cubes = [_draw("cube", math.radians(yaw), False, background, colour) for yaw in YAWS]
    wheels = [_draw(shape, 0.0, True, background, colour) for shape in paint.ROUND]
    return (*cubes, *wheels)


@functools.lru_cache(maxsize=256)
def template(shape: str) -> Template:
    """Any upright flat shape, words included."""
    return _draw(shape, 0.0, False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _draw(shape: str, angle: float, spinning: bool, background: _RGB, colour: _RGB) -> Template:
    phrase = Phrase(
        size="normal", colour="red", shape=shape, motion="spinning" if spinning else None
    )
    # A first drawing, radius 1, gives mass and centroid; the second has them set to 1 and 0.
    half = 1.1 * reach(shape)
    coverage, light, axis = _paint(phrase, angle, half=half, radius=1.0, x=0.0, y=0.0)
    mass_map = _along_colour(coverage, light, np.array(background), np.array(colour))
    area = (axis[1] - axis[0]) ** 2
    mass = float(mass_map.sum()) * area
    x = float((mass_map * axis).sum()) * area / mass
    y = float((mass_map * axis[:, None]).sum()) * area / mass
    radius = 1 / math.sqrt(mass)
    coverage, light, _ = _paint(phrase, angle, half=HALF_PATCH, radius=radius, x=x, y=y)
    blurred = [[ndimage.gaussian_filter(m, sigma) for sigma in BLURS] for m in (coverage, light)]
    return Template(shape=shape, radius=radius, coverage=np.stack(blurred[0]), light=np.stack(blurred[1]))


def _along_colour(
    coverage: Float[np.ndarray, "h w"],
    light: Float[np.ndarray, "h w"],
    background: Float[np.ndarray, "3"],
    colour: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "h w"]:
    """Share of light * c - coverage * b along c - b: what `Observation.mass` adds up."""
    to_colour = colour - background
    scale = to_colour @ to_colour
    return light * (colour @ to_colour / scale) - coverage * (background @ to_colour / scale)


def _paint(
    phrase: Phrase, angle: float, *, half: float, radius: float, x: float, y: float
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, " n"]]:
    """Draws a patch of half width `half` around the point (x, y), which is in radii."""
    count = PATCH * _FINE
    axis = ((np.arange(count) + 0.5) / count * 2 - 1) * half
    poses = Poses(x=np.zeros(1), y=np.zeros(1), radius=np.full(1, radius), angle=np.full(1, angle))
    coverage, light = paint.paint(
        (axis / radius + x).astype(np.float32)[None, None, :],
        (axis / radius + y).astype(np.float32)[None, :, None],
        phrase=phrase,
        texture=0,
        style=None,
        poses=poses,
        scale=np.full(1, radius / (axis[1] - axis[0])),
    )
    means = [m[0].reshape(PATCH, _FINE, PATCH, _FINE).mean(axis=(1, 3)) for m in (coverage, light)]
    return *means, axis.reshape(PATCH, _FINE).mean(axis=1)
