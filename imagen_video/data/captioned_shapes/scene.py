"""Scenes: a caption, and the numbers it leaves open (where, how large, which shade).

A scene knows no resolution, no frame rate and no canvas shape; `motion.py` and `render.py` bring
them in. All lengths are fractions of the canvas' shorter side.
"""

import dataclasses
import math

from imagen_video.data.captioned_shapes import palette
from imagen_video.data.captioned_shapes.draws import Draws
from imagen_video.data.captioned_shapes.grammar import Caption

# Diameters, in ratios of 1.5: the largest still fits a canvas when it grows, and the smallest is
# still three pixels wide on a canvas 12 pixels high.
DIAMETER = {"small": 0.27, "normal": 0.42, "large": 0.62}
PAIR_SCALE = 0.7  # in a scene of two, each object has half the canvas and 0.7 of the size
MAX_TILT = math.radians(8)
CUBE_YAW = (math.radians(15), math.radians(75))  # two sides are seen
TURN = (math.radians(180), math.radians(240))  # below half the symmetry of a star in 8 frames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body:
    """The numbers behind one phrase of the caption.

    Attributes:
      rgb: colour, sRGB in [0, 1].
      radius: half the size word's diameter, +-5%; for growing and shrinking objects the size at
        half time, which is the geometric mean of first and last size.
      across, down: where in its free range the object is (or its path lies), in [0, 1).
      travel: how much of the free range a motion uses, in [0, 1).
      phase: where in its cycle a bounce starts, in [0, 1).
      tilt: angle at rest, radians, clockwise on the screen; for a cube its angle about the
        vertical axis.
      turn: angle a spinning object turns through in the whole clip, radians, signed.
      texture: seeds the cells of the mosaic style.
    """

    rgb: palette.RGB
    radius: float
    across: float
    down: float
    travel: float
    phase: float
    tilt: float
    turn: float
    texture: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip or still image before it is drawn: `bodies[k]` belongs to `caption.objects[k]`.

    Attributes:
      caption: what is said about it.
      bodies: the numbers of each object; the last is in front.
      background: colour behind them, sRGB in [0, 1].
    """

    caption: Caption
    bodies: tuple[Body, ...]
    background: palette.RGB


def draw_scene(caption: Caption, draws: Draws) -> Scene:
    """Draws what `caption` leaves open; the same draws give the same scene."""
    background = palette.background_rgb(caption.background, draws)
    scale = 1.0 if len(caption.objects) == 1 else PAIR_SCALE
    bodies = []
    for phrase in caption.objects:
        rgb = palette.object_rgb(phrase.colour, draws, pastel=caption.style == "pastel")
        radius = 0.5 * DIAMETER[phrase.size] * scale * draws.uniform(0.95, 1.05)
        across, down, travel, phase = (draws.uniform() for _ in range(4))
        tilt = draws.uniform(-MAX_TILT, MAX_TILT)
        if phrase.shape == "cube":
            tilt = draws.uniform(*CUBE_YAW)
        turn = draws.choice((-1, 1)) * draws.uniform(*TURN)
        bodies.append(
            Body(
                rgb=rgb,
                radius=radius,
                across=across,
                down=down,
                travel=travel,
                phase=phase,
                tilt=tilt,
                turn=turn,
                texture=draws.choice(range(2**16)),
            )
        )
    return Scene(caption=caption, bodies=tuple(bodies), background=background)
