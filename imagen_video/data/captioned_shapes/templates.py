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
YAW_STEP = 5.0  # degrees; a cube looks the same after 90
YAWS = np.arange(0.0, 90.0, YAW_STEP)
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
    b, c = np.array(background), np.array(colour)
    to_colour = (c - b) / ((c - b) @ (c - b))
    # What `Observation.mass` adds up: light * c - coverage * b, as a share of c - b.
    of_coverage, of_light = _moments(shape, angle, spinning)
    mass, x, y = (c @ to_colour) * of_light - (b @ to_colour) * of_coverage
    radius, centre = 1 / math.sqrt(mass), (float(x / mass), float(y / mass))
    coverage, light, _ = _paint(shape, angle, spinning, HALF_PATCH, radius, centre)
    blurred = [[ndimage.gaussian_filter(m, sigma) for sigma in BLURS] for m in (coverage, light)]
    return Template(
        shape=shape, radius=radius, coverage=np.stack(blurred[0]), light=np.stack(blurred[1])
    )


@functools.lru_cache(maxsize=256)
def _moments(shape: str, angle: float, spinning: bool) -> Float[np.ndarray, "2 3"]:
    """Of coverage and of light, at radius 1: the sum, and the sums times x and times y."""
    half = 1.1 * reach(shape)
    *maps, axis = _paint(shape, angle, spinning, half, 1.0, (0.0, 0.0))
    area = (axis[1] - axis[0]) ** 2
    sums = [(m.sum(), (m * axis).sum(), (m * axis[:, None]).sum()) for m in maps]
    return np.array(sums) * area


def _paint(
    shape: str,
    angle: float,
    spinning: bool,
    half: float,
    radius: float,
    centre: tuple[float, float],
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, " n"]]:
    """Coverage and light of a patch `half` wide each way from `centre`, in radii; and its axis."""
    phrase = Phrase(
        size="normal", colour="red", shape=shape, motion="spinning" if spinning else None
    )
    count = PATCH * _FINE
    axis = ((np.arange(count) + 0.5) / count * 2 - 1) * half
    poses = Poses(x=np.zeros(1), y=np.zeros(1), radius=np.full(1, radius), angle=np.full(1, angle))
    coverage, light = paint.paint(
        (axis / radius + centre[0]).astype(np.float32)[None, None, :],
        (axis / radius + centre[1]).astype(np.float32)[None, :, None],
        phrase=phrase,
        texture=0,
        style=None,
        poses=poses,
        scale=np.full(1, radius / (axis[1] - axis[0])),
    )
    means = [m[0].reshape(PATCH, _FINE, PATCH, _FINE).mean(axis=(1, 3)) for m in (coverage, light)]
    return *means, axis.reshape(PATCH, _FINE).mean(axis=1)
